"""Shards, parts of whole tensors: the common form in which engines give what they hold."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gam_scale.checkpoint.cuts import grid_of

PARAM = "param"
"""The kind of a parameter's own value; all other kinds are names of an optimizer's states."""


@dataclass(frozen=True)
class StateSpec:
    """Describes a tensor that an optimizer keeps for a parameter."""

    shape: tuple[int, ...]
    """Often the parameter's; () for a count."""
    dtype: torch.dtype = torch.float32
    initial: float = 0.0
    """The value of every element before the first step."""

    def initial_tensor(self, device: torch.device) -> Tensor:
        """Make the state as it is before the first step."""
        return torch.full(self.shape, self.initial, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Shard:
    """A part of one tensor: a box of it, or a range of its elements in row-major order.

    FSDP2 cuts each parameter between rows, and a mesh of more axes cuts columns too; these parts
    are boxes. ZeRO cuts a flat concatenation of parameters at arbitrary elements; such a part is a
    range, and is kept as a box of the flattened tensor. As boxes of the tensor itself, a range in n
    dimensions would be up to 2n - 1 of them, and the index of a checkpoint three times as long.
    """

    kind: str
    """:data:`PARAM`, or the state's name in the optimizer."""
    name: str
    """The parameter's name."""
    shape: tuple[int, ...]
    """The whole tensor's shape."""
    offset: tuple[int, ...]
    """The first element in each dimension; for a range one number, its first element."""
    data: Tensor
    """A view of the engine's own memory, of the box's or the range's shape."""
    copy: int = 0
    """Which of ``n_copies`` identical shards, on as many ranks, this is."""
    n_copies: int = 1

    @classmethod
    def whole(cls, kind: str, name: str, data: Tensor, copy: int = 0, n_copies: int = 1) -> "Shard":
        """Make a shard of a whole tensor."""
        return cls(kind, name, tuple(data.shape), (0,) * data.dim(), data, copy, n_copies)

    @property
    def key(self) -> str:
        """The tensor's name in a checkpoint."""
        return f"{self.kind}.{self.name}"

    def write_from(self, whole: Tensor) -> None:
        """Fill this shard's data from the whole tensor."""
        grid = whole.reshape(grid_of(self.shape, self.offset))
        extent = zip(self.offset, self.data.shape, strict=True)
        self.data.copy_(grid[tuple(slice(first, first + size) for first, size in extent)])

    def own_part(self) -> "Shard":
        """Return the share that this rank saves if others hold the same shard: some of its rows."""
        if not self.offset:
            return replace(self, data=self.data if self.copy == 0 else self.data.new_empty(0))
        n = len(self.data)
        first, last = n * self.copy // self.n_copies, n * (self.copy + 1) // self.n_copies
        offset = (self.offset[0] + first, *self.offset[1:])
        return Shard(self.kind, self.name, self.shape, offset, self.data[first:last])
