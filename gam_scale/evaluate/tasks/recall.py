"""Multi-query associative recall: texts that ask for what they have stated (arXiv 2312.04927)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from gam_scale.data.packing import Batch, plain_batch
from gam_scale.errors import UserError
from gam_scale.evaluate.tasks.task import Task, task
from gam_scale.model.loss import IGNORE

POWER = 0.01  # of the power law of gaps between pairs and queries; Zoology's `power_a`


@task("recall")
@dataclass(frozen=True)
class Recall(Task):
    """One difficulty: texts of ``seq_len`` tokens that state ``pairs`` keys and values."""

    pairs: int

    columns: ClassVar[tuple[str, ...]] = ("tokens", "pairs")

    def __post_init__(self) -> None:
        """Raise UserError if such texts cannot be made."""
        if self.pairs < 1 or 4 * self.pairs > self.seq_len or self.seq_len % 2:
            raise UserError(
                f"recall of {self.pairs} pairs in {self.seq_len} tokens is impossible; expected an "
                "even length of at least 4 tokens a pair"
            )
        if self.vocab_size % 2 or self.vocab_size // 2 - 1 < self.pairs:
            raise UserError(
                f"recall.vocab_size is {self.vocab_size}, which does not give {self.pairs} keys; "
                f"expected an even number of at least {2 * self.pairs + 2}"
            )

    def texts(self, n: int, seed: int, *, blank: bool = False) -> Batch:
        """See :meth:`Task.texts` and :func:`recall_batch`."""
        return recall_batch(self, n, seed, blank)

    @property
    def asked(self) -> int:
        """See :attr:`Task.asked`: each key once."""
        return self.pairs

    @property
    def size(self) -> int:
        """See :attr:`Task.size`."""
        return self.pairs

    @property
    def label(self) -> str:
        """See :attr:`Task.label`."""
        return f"{self.pairs} in {self.seq_len}"

    def answers(self) -> np.ndarray:
        """See :meth:`Task.answers`: the values are the second half of the ids."""
        return np.arange(self.vocab_size // 2, self.vocab_size)

    @property
    def chance(self) -> float:
        """See :attr:`Task.chance`: one of all values."""
        return 2.0 / self.vocab_size

    @property
    def guess(self) -> float:
        """See :attr:`Task.guess`: one of the text's own values."""
        return 1.0 / self.pairs


def recall_batch(task: Recall, n: int, seed: int, blank: bool = False) -> Batch:
    """Make ``n`` texts with their labels; the same seed gives the same texts.

    A text states its pairs, ``k1 v1 k2 v2 ...``: distinct keys from the first half of the
    vocabulary (without id 0), distinct values from the second. Then each key comes once more as a
    query, 2 g tokens after the end of the pairs, where g is drawn without replacement from
    p(g) ~ (g + 1)^(a - 1) with a = 0.01: mostly soon, seldom late. The label at a query is the
    key's value; other positions have none. The rest is filled with random ids, or with id 0 if
    ``blank``. Unlike Zoology's, the filler never repeats a key of the text, which would make a
    query ambiguous: a frequent case in a small vocabulary, a rare one in Zoology's of 8,192.
    """
    rng = np.random.default_rng(seed)
    half, pairs, stated = task.vocab_size // 2, task.pairs, 2 * task.pairs
    keys = 1 + _distinct(rng, np.ones(half - 1), n, pairs)
    values = half + _distinct(rng, np.ones(half), n, pairs)
    places = (task.seq_len - stated) // 2
    gaps = _distinct(rng, np.arange(1, places + 1) ** (POWER - 1.0), n, pairs)
    tokens = _filler(rng, task, keys, n)
    tokens = np.zeros_like(tokens) if blank else tokens
    tokens[:, 0:stated:2], tokens[:, 1:stated:2] = keys, values
    targets = np.full_like(tokens, IGNORE)
    np.put_along_axis(tokens, stated + 2 * gaps, keys, axis=1)
    np.put_along_axis(targets, stated + 2 * gaps, values, axis=1)
    return plain_batch(torch.from_numpy(tokens), torch.from_numpy(targets))


def _distinct(rng: np.random.Generator, weights: np.ndarray, n: int, k: int) -> np.ndarray:
    """Draw ``k`` indices per row by weight, in turn and without replacement, (n, k) int64.

    The k largest of log(weight) + Gumbel noise, in descending order, are such draws.
    """
    scores = np.log(weights) + rng.gumbel(size=(n, len(weights)))
    top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(top, order, axis=1)


def _filler(rng: np.random.Generator, task: Recall, keys: np.ndarray, n: int) -> np.ndarray:
    """Draw random ids (n, seq_len) that are not keys of their row."""
    is_key = np.zeros((n, task.vocab_size), bool)
    np.put_along_axis(is_key, keys, True, axis=1)
    tokens = rng.integers(task.vocab_size, size=(n, task.seq_len))
    while (clash := np.take_along_axis(is_key, tokens, axis=1)).any():
        tokens[clash] = rng.integers(task.vocab_size, size=int(clash.sum()))
    return tokens
