"""What every engine's memory comes down to: parts of whole tensors."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gam_scale.checkpoint.cuts import grid_of

PARAM = "param"
"""The kind of a parameter's own value; all other kinds are names of an optimizer's states."""


@dataclass(frozen=True)
class StateSpec:
    """A tensor that an optimizer keeps of a parameter."""

    shape: tuple[int, ...]
    """Often the parameter's; () of a count."""
    dtype: torch.dtype = torch.float32
    initial: float = 0.0
    """What every element is before the first step."""

    def made(self, device: torch.device) -> Tensor:
        """As it is before the first step."""
        return torch.full(self.shape, self.initial, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Shard:
    """A part of one tensor: a box of it, or a range of its elements in row-major order.

    FSDP2 cuts each parameter between rows, and a mesh of more axes cuts columns too: boxes. ZeRO
    cuts a flat concatenation of parameters at arbitrary elements: a range, which is kept as such,
    as a box of the flattened tensor. Cut into boxes of the tensor it would be up to 2n - 1 of them
    in n dimensions, and the index of a checkpoint three times as long.
    """

    kind: str
    """:data:`PARAM`, or the state's name in the optimizer."""
    name: str
    """The parameter's."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    offset: tuple[int, ...]
    """The first element in each dimension; of a range its first element, one number."""
    data: Tensor
    """A view of the engine's own memory, of the box's or the range's shape."""
    copy: int = 0
    """Which of ``n_copies`` identical ones on as many ranks this is."""
    n_copies: int = 1

    @classmethod
    def whole(cls, kind: str, name: str, data: Tensor, copy: int = 0, n_copies: int = 1) -> "Shard":
        """All of a tensor."""
        return cls(kind, name, tuple(data.shape), (0,) * data.dim(), data, copy, n_copies)

    @property
    def key(self) -> str:
        """The tensor's name in a checkpoint."""
        return f"{self.kind}.{self.name}"

    def write_from(self, whole: Tensor) -> None:
        """Copy this part out of the whole tensor."""
        grid = whole.reshape(grid_of(self.shape, self.offset))
        extent = zip(self.offset, self.data.shape, strict=True)
        self.data.copy_(grid[tuple(slice(first, first + size) for first, size in extent)])

    def own_part(self) -> "Shard":
        """The share of it that this rank saves where others hold the same: some of the rows."""
        if not self.offset:
            return replace(self, data=self.data if self.copy == 0 else self.data.new_empty(0))
        n = len(self.data)
        first, last = n * self.copy // self.n_copies, n * (self.copy + 1) // self.n_copies
        offset = (self.offset[0] + first, *self.offset[1:])
        return Shard(self.kind, self.name, self.shape, offset, self.data[first:last])
