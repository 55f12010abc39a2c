"""Look something up on the main rank alone, and give all ranks the same answer.

Ranks that looked for themselves could disagree: another run's directory may change between two
looks, and a network file system may show each host a different state of it.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from gam_scale.errors import UserError
from gam_scale.parallel.world import World

T = TypeVar("T")


def agreed(world: World, find: Callable[[], T]) -> T:
    """Call ``find`` on the main rank alone and return its result on all ranks, which all call this.

    Raises:
        UserError: on all ranks alike, if ``find`` raises it.
    """
    if world.world_size == 1:
        return find()
    outcome: list[T | UserError | None] = [None]
    if world.is_main:
        try:
            outcome[0] = find()
        except UserError as error:
            outcome[0] = error
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]  # type: ignore[return-value]
