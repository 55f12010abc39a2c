"""A stop request: a signal to any rank stops all ranks, between two steps."""

from gam_scale.train.loop import Hook, Loop
from gam_scale.train.signals import StopRequest


class Stopping(Hook):
    """Ends the loop once any rank was asked to stop."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def ballot(self, loop: Loop) -> float:
        """Return whether this rank was asked to stop."""
        return float(self._stop.requested)

    def agreed(self, loop: Loop, total: float) -> None:
        """End the loop if any rank was asked."""
        if total:
            loop.finish("stopped")
