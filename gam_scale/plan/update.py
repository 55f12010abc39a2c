"""What the optimizer's step keeps, computes and sends on the rank that has most of it."""

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
    """Of parameters that engines may cut anywhere, and of those that one rank steps whole."""

    kept_of_parts: float  # bytes kept of the former, on all ranks together
    kept_whole: float  # bytes kept of the latter, on the fullest rank
    whole: float  # bytes of the latter themselves, likewise
    sent: float  # bytes of what all ranks send of them to their owners, and get back
    flops: float  # of matrix products, on the rank that has most

    @classmethod
    def of(cls, groups: Sequence[Group], ranks: int) -> "Update":
        """Of groups of parameters that ``ranks`` share; 1: that each rank has all of."""
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
        """Bytes kept on the fullest rank, where each steps this share of all parameters."""
        return share * self.kept_of_parts + self.kept_whole


def _most(by_rank: dict[int, float]) -> float:
    return max(by_rank.values(), default=0.0)
