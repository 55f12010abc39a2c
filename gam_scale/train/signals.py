"""A polite request to stop, noticed at the next step boundary."""

import signal
from types import FrameType


class StopRequest:
    """Set by SIGTERM or a first Ctrl-C; a second Ctrl-C interrupts at once.

    The handler only sets a flag: saving, and agreeing with the other ranks, is the loop's work.
    """

    def __init__(self) -> None:
        self.requested = False
        numbers = (signal.SIGTERM, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._handle) for number in numbers}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
