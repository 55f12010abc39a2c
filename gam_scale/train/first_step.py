"""A sign of life while a start's first step compiles, gathers and computes."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

logger = logging.getLogger("gam_scale")


class FirstStep:
    """Says, from time to time, that the first step is still under way, until it is done.

    Args:
        then: called once it is done.
        compiled: whether it compiles the blocks, for the sentence.
        every_s: seconds between two sentences.
    """

    def __init__(self, then: Callable[[], None], compiled: bool, every_s: float = 30.0) -> None:
        self._then, self._every_s = then, every_s
        self._what = ", which compiles the blocks," if compiled else ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, name="first step", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def done(self) -> None:
        """The step is computed."""
        self._over.set()
        self._then()

    def _wait(self) -> None:
        start = time.monotonic()
        while not self._over.wait(self._every_s):
            seconds = time.monotonic() - start
            logger.info("the first step%s is under way, %.0f s so far", self._what, seconds)
