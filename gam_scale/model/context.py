"""What a model asks of the ranks that its sequences are cut over."""

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """The ranks of one sequence: each holds T consecutive tokens of it, in rank order.

    Both exchanges are differentiable, and every rank must take part in each.
    """

    rank: int
    size: int

    def gather(self, x: Tensor) -> Tensor:
        """``x`` of every rank, in order: (size, ...)."""

    def shift(self, x: Tensor) -> Tensor:
        """``x`` of the rank before; zeros on the first one."""
