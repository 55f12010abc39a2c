"""A signal to any rank stops all of them, between two steps."""

from gam_scale.train.loop import Hook, Loop
from gam_scale.train.signals import StopRequest


class Stopping(Hook):
    """Ends the loop once a rank was asked to stop."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop

    def ballot(self, loop: Loop) -> float:
        """Whether this one was."""
        return float(self._stop.requested)

    def agreed(self, loop: Loop, total: float) -> None:
        """Stop, if any was."""
        if total:
            loop.finish("stopped")
