"""A polite request to stop, noticed at the next step boundary."""

import signal
from types import FrameType


class StopRequest:
    """Set by SIGTERM, SIGUSR1, SIGUSR2 or a first Ctrl-C; a second Ctrl-C interrupts at once.

    SIGUSR1 and SIGUSR2 are what Slurm and submitit send before a time limit or a pre-emption.

    The handler only sets a flag: saving, and agreeing with the other ranks, is the loop's work. As
    a context manager around the whole run, so that a launcher that ends a job because a rank died
    does not cut off the others while they say which one it was.
    """

    def __init__(self) -> None:
        self.requested = False
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> "StopRequest":
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
