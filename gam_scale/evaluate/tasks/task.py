"""Base class of synthetic tasks, and the registry of their kinds, each a file beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from gam_scale.data.packing import Batch
from gam_scale.errors import UserError
from gam_scale.evaluate.kinds import Kinds
from gam_scale.model.loss import IGNORE


@dataclass(frozen=True)
class Task(ABC):
    """One difficulty of a task: texts of ``seq_len`` tokens, some of which have a label."""

    seq_len: int
    vocab_size: int

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("tokens",)
    """Names of the numbers that define a difficulty; the first number is ``seq_len``."""
    guessed: ClassVar[str] = "the text's values"
    """Name of the answers that :attr:`guess` chooses from, those not plainly excluded by a text."""

    @classmethod
    def of(cls, row: Sequence[int], vocab_size: int) -> Self:
        """Return the difficulty that ``row`` defines: a number for each of :attr:`columns`.

        Raises:
            UserError: too few or too many numbers, or such texts cannot be made.
        """
        if len(row) != len(cls.columns):
            example = [128, 8][: len(cls.columns)]
            raise UserError(
                f"recall.train and recall.test list {list(row)} for {cls.kind}; they list "
                f"[{', '.join(cls.columns)}]; expected such as {example}"
            )
        return cls(row[0], vocab_size, *row[1:])

    @abstractmethod
    def texts(self, n: int, seed: int, *, blank: bool = False) -> Batch:
        """Make ``n`` texts with their labels, (n, seq_len); the same seed gives the same texts.

        Args:
            n: number of texts.
            seed: seed of the draws.
            blank: fill what is neither stated nor asked with id 0.
        """

    @property
    @abstractmethod
    def asked(self) -> int:
        """Number of labels in a text that count when a model is graded."""

    def graded(self, targets: Tensor) -> Tensor:
        """Return the mask (B, T) of labels that count in grading: all, unless a kind overrides."""
        return targets != IGNORE

    @property
    def size(self) -> int:
        """The number that figures have on the x axis: the last of :attr:`columns`."""
        return self.seq_len

    @property
    def label(self) -> str:
        """Header of the difficulty's column in a table."""
        return f"{self.seq_len:,}"

    @abstractmethod
    def answers(self) -> np.ndarray:
        """Return all ids that can be a label."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of a random choice among all possible answers."""

    @property
    @abstractmethod
    def guess(self) -> float:
        """Accuracy of a random choice among the answers that :attr:`guessed` describes."""


_KINDS: Kinds[Task] = Kinds("gam_scale.evaluate.tasks")
task = _KINDS.register
"""Decorator that registers a kind of task by its name."""
tasks = _KINDS.all
"""Function that returns every kind by its name."""


def task_of(kind: str) -> type[Task]:
    """Return the class of a kind.

    Raises:
        UserError: there is no kind of that name.
    """
    known = tasks()
    if kind not in known:
        raise UserError(f"recall.task is {kind!r}; expected one of {', '.join(known)}")
    return known[kind]
