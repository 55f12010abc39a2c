"""Checkpoints on their way to a mirror: what comes next is agreed on between two steps."""

from gam_scale.train.loop import Hook, Loop
from gam_scale.train.mirror import Mirror


class Mirroring(Hook):
    """Has the mirror go on once every rank has uploaded its part."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def ballot(self, loop: Loop) -> float:
        """Whether this rank has."""
        return float(self._mirror.ballot())

    def agreed(self, loop: Loop, total: float) -> None:
        """Go on, if all have."""
        self._mirror.agreed(total)
