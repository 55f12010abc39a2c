"""Reports to the job's watchdog what this rank is doing."""

from gam_scale.parallel.watchdog import Watchdog
from gam_scale.train.loop import Hook, Loop


class Progress(Hook):
    """Notes everything that the loop begins as progress."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def doing(self, loop: Loop, what: str) -> None:
        """See :meth:`Watchdog.at`."""
        self._watchdog.at(loop.state.step, what)
