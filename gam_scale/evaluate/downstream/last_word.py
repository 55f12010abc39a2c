"""Prediction of the last word of a passage, as in LAMBADA (arXiv 1606.06031)."""

import math
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.downstream.pairs_of_text import continued
from gam_scale.evaluate.downstream.rows import read_items
from gam_scale.evaluate.downstream.task import (
    DownstreamTask,
    Figures,
    Material,
    Measure,
    downstream,
)
from gam_scale.evaluate.effective_context import windows_of
from gam_scale.evaluate.interval import proportion
from gam_scale.evaluate.scorer import Scorer, Text
from gam_scale.strict import option, shown

_WORD = re.compile(r"(?<=\S )\w{3,}(?=[^\w\s]|\s)")
"""Pattern of a whole word of three letters or more with something after it. One space stands before
it: what stands there is asked for, too, and a line break or an indent would be a question of its
own."""


@downstream("last_word")
@dataclass(frozen=True)
class LastWord(DownstreamTask):
    """Passages of a file, or of the validation text, whose last word is asked for.

    ``accuracy`` is the share of words of which every token is the likeliest; ``perplexity`` is that
    of a whole word.
    """

    file: str = option(
        "", 'file of JSON lines, {"text": TEXT}; empty: passages from the validation text'
    )
    passages: int = option(200, "most passages to ask", at_least=1)
    tokens: int = option(128, "most tokens of a passage from the validation text", at_least=16)

    def ready(self, material: Material) -> Measure:
        """See :meth:`DownstreamTask.ready`."""
        if self.file:
            rows = read_items(Path(self.file), self.passages)
            parts = [_parts(row, where) for row, where in rows]
        else:
            parts = self._from_text(material)
        pairs = [continued(material.tokenizer, *both, material.seq_len) for both in parts]
        texts, ends = zip(*pairs, strict=True)
        return partial(_measure, texts, ends)

    def _from_text(self, material: Material) -> list[tuple[str, str]]:
        length = min(self.tokens, material.seq_len)
        windows = windows_of(material.documents(length + 1), length, self.passages)
        found = [_cut(material.tokenizer, window) for window in windows]
        parts = [both for both in found if both is not None]
        if not parts:
            raise UserError(
                "the validation text has no word at the end of a passage; expected other text, or "
                "a file"
            )
        return parts


def _measure(texts: list[Text], ends: list[np.ndarray], scorer: Scorer) -> Figures:
    found = scorer.likelihoods(texts, ends)
    mean = -float(found.nats.mean())
    return {
        "accuracy": proportion(found.greedy.astype(float), np.ones(len(texts))),
        "perplexity": math.exp(mean) if mean < 700 else math.inf,
    }


def _cut(tokenizer: Tokenizer, ids: np.ndarray) -> tuple[str, str] | None:
    """Return a passage up to the last whole word in its second half, and the word, or None."""
    text = tokenizer.decode(ids).strip("\N{REPLACEMENT CHARACTER}")
    words = [match for match in _WORD.finditer(text) if match.start() > len(text) // 2]
    return (text[: words[-1].start()], words[-1][0]) if words else None


def _parts(row: dict[str, Any], where: str) -> tuple[str, str]:
    text = row.get("text")
    if not isinstance(text, str) or len(text.split()) < 2:
        raise UserError(f"{where}: text is {shown(text)}; expected two words or more")
    before, word = text.rstrip().rsplit(None, 1)
    return f"{before} ", word
