"""State tracking: the label of every token is the product, in a group, of the tokens so far.

A linear recurrence whose transitions have no negative eigenvalues cannot do this at arbitrary
lengths, not even in a group of two elements (arXiv 2411.12537): the delta rule needs strengths in
0..2, with which a token can reflect the state. Train at short lengths and test at longer ones: a
model that has learned the group generalises, one that has memorised texts does not.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.packing import Batch, plain_batch
from gam_scale.errors import UserError
from gam_scale.evaluate.tasks.task import Task, task

GRADED = 0.25
"""Share of a text that is graded: its end, since its start is as short as a training text."""


@dataclass(frozen=True)
class Tracking(Task):
    """Texts of elements of a finite group."""

    products: ClassVar[np.ndarray]
    """(elements, elements): row a, column b has the number of the product a b; 0 is the unit."""
    moves: ClassVar[tuple[int, ...]]
    """Elements from which the tokens of a text are drawn, uniformly."""

    def __post_init__(self) -> None:
        """Raise UserError if such texts cannot be made."""
        if self.seq_len < 1 or self.vocab_size < len(self.products):
            raise UserError(
                f"{self.kind} of {self.seq_len} tokens with recall.vocab_size {self.vocab_size} is "
                f"impossible; expected a token or more, and at least {len(self.products)} ids"
            )

    def texts(self, n: int, seed: int, *, blank: bool = False) -> Batch:
        """See :meth:`Task.texts`; every token has a label, and ``blank`` changes nothing."""
        rng = np.random.default_rng(seed)
        tokens = rng.choice(np.array(self.moves), size=(n, self.seq_len))
        targets, product = np.empty_like(tokens), np.zeros(n, np.int64)
        for t in range(self.seq_len):
            product = self.products[product, tokens[:, t]]
            targets[:, t] = product
        return plain_batch(torch.from_numpy(tokens), torch.from_numpy(targets))

    @property
    def asked(self) -> int:
        """See :attr:`Task.asked`."""
        return max(1, round(GRADED * self.seq_len))

    def graded(self, targets: Tensor) -> Tensor:
        """See :meth:`Task.graded`: the end of each text."""
        return (torch.arange(self.seq_len) >= self.seq_len - self.asked).expand(targets.shape)

    def answers(self) -> np.ndarray:
        """See :meth:`Task.answers`: an id for each element of the group."""
        return np.arange(len(self.products))

    @property
    def chance(self) -> float:
        """See :attr:`Task.chance`."""
        return 1.0 / len(self.products)

    @property
    def guess(self) -> float:
        """See :attr:`Task.guess`: at any place all elements are equally likely."""
        return self.chance


def _permutations(count: int) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Return the permutations of ``count`` things, the unit first, and their products.

    The product a b applies b first, then a.
    """
    elements = list(permutations(range(count)))
    number = {element: i for i, element in enumerate(elements)}
    table = [[number[tuple(a[i] for i in b)] for b in elements] for a in elements]
    return elements, np.array(table, np.int64)


_S3, _S3_PRODUCTS = _permutations(3)


@task("parity")
@dataclass(frozen=True)
class Parity(Tracking):
    """Bits; the label is 1 after an odd number of ones."""

    products: ClassVar[np.ndarray] = np.array([[0, 1], [1, 0]])
    moves: ClassVar[tuple[int, ...]] = (0, 1)


@task("s3")
@dataclass(frozen=True)
class S3(Tracking):
    """All six permutations of three things. They do not commute; a rotation is two reflections."""

    products: ClassVar[np.ndarray] = _S3_PRODUCTS
    moves: ClassVar[tuple[int, ...]] = tuple(range(6))


@task("s3_swaps")
@dataclass(frozen=True)
class S3Swaps(S3):
    """Products of the three swaps alone, each of which is one reflection.

    The product of an even number of swaps is the unit or a rotation, of an odd number a swap.
    """

    guessed: ClassVar[str] = "products of as many swaps"
    moves: ClassVar[tuple[int, ...]] = tuple(
        i for i, element in enumerate(_S3) if sum(a != b for a, b in enumerate(element)) == 2
    )

    @property
    def guess(self) -> float:
        """See :attr:`Task.guess`: the number of swaps, even or odd, rules out half of the group."""
        return 2.0 / len(self.products)
