"""Memory, computation and traffic of the optimizer's step, on the ranks that have most."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from gam_scale.parallel.algorithm import Group
from gam_scale.parallel.optimizer import state_bytes
from gam_scale.parallel.whole import owners_of
from gam_scale.plan.activations import FP32


@dataclass(frozen=True)
class Update:
    """Figures of a step of parameters that engines may cut anywhere ("parts"), and of parameters
    that one rank, their owner, steps whole."""

    cut_state_bytes: float  # bytes kept for parts, on all ranks together
    whole_state_bytes: float  # bytes kept for whole parameters, on the fullest rank
    whole_bytes: float  # bytes of the whole parameters themselves, on the rank that owns most
    sent: float  # bytes of whole parameters that all ranks send to owners, and get back
    flops: float  # of matrix products, on the rank that has most

    @classmethod
    def of(cls, groups: Sequence[Group], ranks: int) -> "Update":
        """Add up groups of parameters that ``ranks`` share; 1: each rank has all parameters."""
        owners = owners_of(groups, ranks)
        kept: dict[int, float] = defaultdict(float)
        size: dict[int, float] = defaultdict(float)
        flops: dict[int, float] = defaultdict(float)
        sent, parts = 0.0, [group for group in groups if group["algorithm"].elementwise]
        for group in groups:
            if group["algorithm"].elementwise:
                continue
            algorithm = group["algorithm"]
            lists = (group[key] for key in ("names", "shapes", "stacks"))
            for name, shape, stack in zip(*lists, strict=True):
                owner, elements = owners[name], math.prod(shape)
                one = group | {"names": [name], "shapes": [shape]}
                kept[owner] += state_bytes([one])
                size[owner] += elements * FP32
                flops[owner] += algorithm.flops(shape, stack)
                sent += elements * FP32 * (2 if algorithm.additive else 3)
        return cls(state_bytes(parts), _most(kept), _most(size), sent, _most(flops))

    def kept(self, share: float) -> float:
        """Return the bytes kept on the fullest rank, if each rank steps this share of the parts."""
        return share * self.cut_state_bytes + self.whole_state_bytes


def _most(by_rank: dict[int, float]) -> float:
    return max(by_rank.values(), default=0.0)
