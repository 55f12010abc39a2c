"""The synthetic tasks of evaluate/tasks, in words of a trained model's own vocabulary.

A model that was never trained on such texts can answer from the context alone, for recall by
copying what followed a word's first appearance (arXiv 2209.11895).
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from functools import partial

import numpy as np

from gam_scale.data.order import derive_seed
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.downstream.task import (
    DownstreamTask,
    Figures,
    Material,
    Measure,
    downstream,
)
from gam_scale.evaluate.hidden import words
from gam_scale.evaluate.interval import proportion
from gam_scale.evaluate.scorer import Scorer, Text
from gam_scale.evaluate.tasks.task import task_of, tasks
from gam_scale.strict import option


@dataclass(frozen=True)
class InWords(DownstreamTask):
    """Texts of a synthetic task; the likeliest of its possible answers is the model's."""

    size: list[int] = option(
        MISSING, "size of a text: [tokens, pairs] in recall, [tokens] in other tasks", at_least=1
    )
    texts: int = option(64, "number of texts to ask", at_least=2)
    words: int = option(
        64, "number of words of the vocabulary that stand for the task's ids", at_least=2
    )

    def ready(self, material: Material) -> Measure:
        """See :meth:`DownstreamTask.ready`."""
        rng = np.random.default_rng(derive_seed(material.seed, "words", self.kind))
        chosen = rng.permutation(_pool(material.tokenizer, self.words))
        task = task_of(self.kind).of(self.size, len(chosen))
        if task.seq_len + 1 > material.seq_len:
            raise UserError(
                f"size is {self.size}, more than the {material.seq_len} tokens that the model "
                "reads with the one that opens a text; expected shorter texts"
            )
        batch = task.texts(self.texts, derive_seed(material.seed, "texts", self.kind))
        asked = (task.graded(batch.targets) & (batch.targets >= 0)).numpy()
        tokens, labels = batch.tokens.numpy(), batch.targets.numpy()
        bos = [material.tokenizer.bos_id]
        texts = [
            Text(np.concatenate([bos, chosen[row]]), 1 + np.flatnonzero(here))
            for row, here in zip(tokens, asked, strict=True)
        ]
        right = chosen[labels[asked]].reshape(self.texts, -1)
        return partial(_measure, texts, chosen[task.answers()], right, task.chance)


def _pool(tokenizer: Tokenizer, n: int) -> np.ndarray:
    """Return an even number of ids, at most ``n``: whole words, then other pieces if too few."""
    found = dict.fromkeys(words(tokenizer))
    found |= dict.fromkeys(i for i in range(tokenizer.vocab_size) if tokenizer.id_to_bytes(i))
    return np.array(list(found)[: min(n, len(found)) // 2 * 2])


def _measure(
    texts: Sequence[Text],
    answers: np.ndarray,
    right: np.ndarray,
    chance: float,
    scorer: Scorer,
) -> Figures:
    given = scorer.likeliest(texts, answers).reshape(right.shape)
    accuracy = proportion(
        (given == right).sum(1).astype(float), np.full(len(right), right.shape[1])
    )
    return {"accuracy": accuracy, "chance": chance}


for _kind in tasks():
    downstream(_kind)(type(f"{_kind}_in_words", (InWords,), {"__doc__": InWords.__doc__}))
