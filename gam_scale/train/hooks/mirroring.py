"""Uploads to a mirror: ranks agree between two steps on what comes next."""

from gam_scale.train.loop import Hook, Loop
from gam_scale.train.mirror import Mirror


class Mirroring(Hook):
    """Lets the mirror go on once every rank has uploaded its part."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def ballot(self, loop: Loop) -> float:
        """Return whether this rank has uploaded its part."""
        return float(self._mirror.ballot())

    def agreed(self, loop: Loop, total: float) -> None:
        """Go on if all ranks have uploaded."""
        self._mirror.agreed(total)
