"""The interface to the ranks over which a model's sequences are cut."""

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """The ranks of one sequence: each holds T consecutive tokens of it, in rank order.

    Both exchanges are differentiable, and every rank must take part in each.
    """

    rank: int
    size: int

    def gather(self, x: Tensor) -> Tensor:
        """Return ``x`` of every rank, in rank order: (size, ...)."""

    def shift(self, x: Tensor) -> Tensor:
        """Return ``x`` of the previous rank; zeros on the first one."""
