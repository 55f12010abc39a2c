"""A polite request to stop, noticed at the next boundary: between steps, batches, or phases."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

from gam_scale.errors import Stopped
from gam_scale.train.launchers import LauncherWatch

if TYPE_CHECKING:  # importing torch takes seconds, in which signals may come too
    from gam_scale.parallel.world import World


class StopRequest:
    """A request to stop, by SIGTERM, SIGUSR1, SIGUSR2 or a first Ctrl-C.

    A second Ctrl-C interrupts at once. Slurm and submitit send SIGUSR1 and SIGUSR2 before a time
    limit or a pre-emption. The end of the launcher that started this rank is a request too.

    The handler only sets a flag: the loop saves and agrees with the other ranks. The handler stays
    for the whole run: if a launcher ends a job because a rank died, the other ranks still have time
    to say which one it was. A StopRequest made while another is open defers to that outer one,
    which a command makes first of all and which has seen all signals since.
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
        """Request a stop."""
        if self._outer:
            self._outer.ask()
        self._asked = True

    def check(self, world: "World") -> None:
        """Raise :class:`Stopped` if any rank was asked to stop; called by all ranks.

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
        """Restore the signal handlers that were there before."""
        if self._watch:
            self._watch.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
