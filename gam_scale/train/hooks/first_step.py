"""Log lines as a sign of life while a start's first step compiles, gathers and computes."""

import logging
import threading
import time

from gam_scale.train.hooks.lines import Lines
from gam_scale.train.loop import Hook, Loop

logger = logging.getLogger("gam_scale")

THREAD = "first step"
"""Name of the thread that logs the sign of life."""


class FirstStep(Hook):
    """Logs from time to time that the first step is still under way, until it is done.

    It then logs how the blocks run, and has the step left out of the run's step time.

    Args:
        lines: leaves the step out of the step time.
        every_s: seconds between two log lines.
    """

    def __init__(self, lines: Lines, every_s: float = 30.0) -> None:
        self._lines, self._every_s = lines, every_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def before_batch(self, loop: Loop) -> None:
        """Start the thread before the first step."""
        if self._thread is None:
            compiles = ", which compiles the blocks," if loop.strategy.compilation.is_on else ""
            self._thread = threading.Thread(
                target=self._wait, args=(compiles,), name=THREAD, daemon=True
            )
            self._thread.start()

    def between(self, loop: Loop) -> None:
        """After the first step, stop the sign of life and log how the blocks run."""
        if loop.is_first:
            self._lines.leave_out_start()
            self._over.set()
            logger.info("%s", loop.strategy.compilation)

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """End the thread."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _wait(self, compiles: str) -> None:
        start = time.monotonic()
        while not self._over.wait(self._every_s):
            seconds = time.monotonic() - start
            logger.info("the first step%s is under way, %.0f s so far", compiles, seconds)
