"""What a synthetic task is, and the registry of their kinds: one file each, beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from gam_scale.data.packing import Batch
from gam_scale.errors import UserError
from gam_scale.evaluate.kinds import Kinds
from gam_scale.model.loss import IGNORE


@dataclass(frozen=True)
class Task(ABC):
    """One difficulty of a task: texts of ``seq_len`` tokens, of which some have a label."""

    seq_len: int
    vocab_size: int

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("tokens",)
    """What the numbers are that a difficulty is given by; the first one is ``seq_len``."""
    guessed: ClassVar[str] = "the text's values"
    """What is left to guess among once what a text shows without effort is known."""

    @classmethod
    def of(cls, row: Sequence[int], vocab_size: int) -> Self:
        """The difficulty that ``row``, numbers as :attr:`columns` names them, stands for.

        Raises:
            UserError: not so many numbers, or such texts cannot be made.
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
        """``n`` texts with their labels, (n, seq_len); the same seed gives the same texts.

        Args:
            n: texts.
            seed: of the draw.
            blank: fill what is neither stated nor asked with id 0.
        """

    @property
    @abstractmethod
    def asked(self) -> int:
        """Labels of a text that count when a model is graded."""

    def graded(self, targets: Tensor) -> Tensor:
        """Which labels (B, T) count when a model is graded, as a mask; all, unless a kind says."""
        return targets != IGNORE

    @property
    def size(self) -> int:
        """What figures have on their x axis: the last of :attr:`columns`."""
        return self.seq_len

    @property
    def label(self) -> str:
        """Of a column in a table."""
        return f"{self.seq_len:,}"

    @property
    @abstractmethod
    def chance(self) -> float:
        """Accuracy of naming any possible answer at random."""

    @property
    @abstractmethod
    def guess(self) -> float:
        """Accuracy of naming at random one of the answers of :attr:`guessed`."""


_KINDS: Kinds[Task] = Kinds("gam_scale.evaluate.tasks")
task = _KINDS.register
"""The decorator of a kind of task, by its name."""
tasks = _KINDS.all
"""Every kind by its name."""


def task_of(kind: str) -> type[Task]:
    """The class of a kind.

    Raises:
        UserError: there is none of that name.
    """
    known = tasks()
    if kind not in known:
        raise UserError(f"recall.task is {kind!r}; expected one of {', '.join(known)}")
    return known[kind]
