"""The grid of a job's ranks: the one place where ranks are numbered.

The ranks are a grid of three axes, ``replicate``, ``shard`` and ``context``, numbered along the
last axis first. Eight ranks, two along each axis::

                               context 0   context 1
    replicate 0   shard 0       rank 0      rank 1     <- halves of one set of sequences
                  shard 1       rank 2      rank 3     <- halves of another
    replicate 1   shard 0       rank 4      rank 5
                  shard 1       rank 6      rank 7

* **context**: the ranks of one row above share their sequences: of each, a rank reads its own
  T / context consecutive tokens. These ranks exchange data most often, so they are neighbours.
* **shard**: the ranks of one block of rows (0 to 3, 4 to 7) together hold one copy of what the
  engine shards, each its own part. The engine shards over ``shard`` and ``context`` together,
  since all ranks need the same weights, whichever tokens they read.
* **replicate**: each block of rows has its own copy. With an engine that shards nothing, the axis
  ``shard`` has size 1.

Each row reads its own sequences; every sum over tokens goes over all ranks.
"""

import math
from dataclasses import astuple, dataclass
from itertools import product
from typing import Literal, NamedTuple

from gam_scale.config.sections import ParallelConfig
from gam_scale.errors import UserError

Axis = Literal["replicate", "shard", "context"]
AXES: tuple[Axis, ...] = ("replicate", "shard", "context")
"""From the axis whose neighbours are farthest apart to the one of adjacent ranks."""


class Place(NamedTuple):
    """A rank's coordinates."""

    replicate: int
    shard: int
    context: int


@dataclass(frozen=True)
class Axes:
    """The number of ranks along each axis."""

    replicate: int = 1
    shard: int = 1
    context: int = 1

    @classmethod
    def of(cls, parallel: ParallelConfig, world_size: int) -> "Axes":
        """Return the axes of a job of ``world_size`` ranks.

        Raises:
            UserError: the ranks cannot be divided as ``parallel`` asks for.
        """
        context, width = parallel.context, parallel.shard_ranks or world_size
        if world_size % context:
            raise UserError(
                f"parallel.context is {context}, which does not divide the {world_size} ranks of "
                "this job; expected a divisor"
            )
        if world_size % width:
            raise UserError(
                f"parallel.shard_ranks is {width}, which does not divide the {world_size} ranks of "
                "this job; expected a divisor, or 0 for all ranks"
            )
        if width % context:
            raise UserError(
                f"parallel.shard_ranks is {width}, which parallel.context {context} does not "
                "divide: ranks that share sequences share one copy of the model; expected a "
                f"multiple of {context}, or 0 for all ranks"
            )
        shards = parallel.engine == "fsdp" or parallel.zero_stage > 0
        shard = width // context if shards else 1
        return cls(world_size // (shard * context), shard, context)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The sizes of the axes, in the order of :data:`AXES`."""
        return astuple(self)

    @property
    def world_size(self) -> int:
        """The number of all ranks."""
        return math.prod(self.sizes)

    @property
    def readers(self) -> int:
        """The number of groups of ranks that each read their own sequences."""
        return self.replicate * self.shard

    @property
    def holders(self) -> int:
        """The number of ranks that together hold one copy of what the engine shards."""
        return self.shard * self.context

    def place(self, rank: int) -> Place:
        """Return the coordinates of ``rank``."""
        reader, context = divmod(rank, self.context)
        return Place(*divmod(reader, self.shard), context)

    def reader(self, rank: int) -> int:
        """Return which of the :attr:`readers` ``rank`` belongs to."""
        return rank // self.context

    def groups(self, *along: Axis) -> list[list[int]]:
        """Return all groups of ranks that differ in these coordinates alone, each in order."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(product(*map(range, self.sizes))):
            fixed = (i for name, i in zip(AXES, place, strict=True) if name not in along)
            groups.setdefault(tuple(fixed), []).append(rank)
        return list(groups.values())
