"""Which rank is where: the one place that numbers a job's ranks.

The ranks are a grid of three axes, ``replicate``, ``shard`` and ``context``, numbered along the
last axis first. Eight ranks, two along each axis::

                               context 0   context 1
    replicate 0   shard 0       rank 0      rank 1     <- halves of one set of sequences
                  shard 1       rank 2      rank 3     <- halves of another
    replicate 1   shard 0       rank 4      rank 5
                  shard 1       rank 6      rank 7

* **context**: the ranks of one row above read the same sequences, each its own T / context
  consecutive tokens of every one. They exchange most often, so they are neighbours.
* **shard**: the ranks of one block of rows (0 to 3, 4 to 7) hold one copy of what the engine
  shards, each its own part: the engine shards over ``shard`` and ``context`` together, since all
  ranks need the same weights, whichever tokens they read.
* **replicate**: each block has a copy of its own. An engine that shards nothing has shard 1.

Each row reads sequences of its own; every sum over tokens goes over all ranks.
"""

import math
from dataclasses import astuple, dataclass
from itertools import product
from typing import Literal, NamedTuple

from gam_scale.config.sections import ParallelConfig
from gam_scale.errors import UserError

Axis = Literal["replicate", "shard", "context"]
AXES: tuple[Axis, ...] = ("replicate", "shard", "context")
"""From the axis whose neighbours are farthest apart to that of adjacent ranks."""


class Place(NamedTuple):
    """A rank's coordinates."""

    replicate: int
    shard: int
    context: int


@dataclass(frozen=True)
class Axes:
    """How many ranks there are along each axis."""

    replicate: int = 1
    shard: int = 1
    context: int = 1

    @classmethod
    def of(cls, parallel: ParallelConfig, world_size: int) -> "Axes":
        """The axes of a job of ``world_size`` ranks.

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
        """In the order of :data:`AXES`."""
        return astuple(self)

    @property
    def world_size(self) -> int:
        """All ranks."""
        return math.prod(self.sizes)

    @property
    def readers(self) -> int:
        """Groups of ranks that each read sequences of their own."""
        return self.replicate * self.shard

    @property
    def holders(self) -> int:
        """Ranks that hold one copy of what the engine shards."""
        return self.shard * self.context

    def place(self, rank: int) -> Place:
        """Where ``rank`` is."""
        reader, context = divmod(rank, self.context)
        return Place(*divmod(reader, self.shard), context)

    def reader(self, rank: int) -> int:
        """Which of the :attr:`readers` ``rank`` belongs to."""
        return rank // self.context

    def groups(self, *along: Axis) -> list[list[int]]:
        """All groups of ranks whose coordinates differ along these axes alone, each in order."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(product(*map(range, self.sizes))):
            fixed = (i for name, i in zip(AXES, place, strict=True) if name not in along)
            groups.setdefault(tuple(fixed), []).append(rank)
        return list(groups.values())
