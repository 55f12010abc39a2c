"""A polite request to stop, noticed at the next boundary: between steps, batches, or phases."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from gam_scale.errors import Stopped
from gam_scale.train.launchers import LauncherWatch

if TYPE_CHECKING:  # it imports torch, and a job's first seconds have signals too
    from gam_scale.parallel.world import World


class StopRequest:
    """Set by SIGTERM, SIGUSR1, SIGUSR2 or a first Ctrl-C; a second Ctrl-C interrupts at once.

    SIGUSR1 and SIGUSR2 are what Slurm and submitit send before a time limit or a pre-emption. The
    end of the launcher that started this rank is such a request too.

    The handler only sets a flag: saving, and agreeing with the other ranks, is the loop's work. It
    stands around the whole run, so that a launcher that ends a job because a rank died does not cut
    off the others while they say which one it was. One inside another asks the outer
    one: what a command made first of all knows the signals of its whole life.
    """

    def __init__(self) -> None:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        around = getattr(self._previous[signal.SIGTERM], "__self__", None)
        self._outer = around if isinstance(around, StopRequest) else None
        self._asked = False
        self._watch = None if self._outer else LauncherWatch(self.ask)

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._outer.requested if self._outer else self._asked

    def ask(self) -> None:
        """Request it."""
        if self._outer:
            self._outer.ask()
        self._asked = True

    def check(self, world: "World") -> None:
        """Give way if any rank was asked to stop; called by all ranks.

        Raises:
            Stopped: on every rank alike.
        """
        if world.any(self.requested):
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask()

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        if self._watch:
            self._watch.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
