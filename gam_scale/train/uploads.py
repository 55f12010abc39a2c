"""Background work that is tried again until it succeeds."""

import logging
import threading
from collections.abc import Callable
from itertools import chain, repeat

from gam_scale.remote import RETRY_SECONDS, Remote

logger = logging.getLogger("gam_scale")

UPLOADER = "checkpoint mirror"
"""Name of the threads that upload."""
LONGEST_WAIT_S = 60.0
"""Seconds between two attempts, once the first few have failed."""


class Uploads:
    """Runs one piece of work after another in threads, each until it succeeds.

    A failure never ends a run. An outage is logged once when it starts and once when it ends.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote, self._failing = remote, False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def done(self) -> bool:
        """Whether all work has succeeded."""
        return self._thread is None or not self._thread.is_alive()

    def begin(self, work: Callable[[], None]) -> None:
        """Do ``work`` after the work before it; an attempt after a failure calls it anew."""
        self._thread = threading.Thread(
            target=self._persist, args=(work, self._thread), name=UPLOADER, daemon=True
        )
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Wait up to ``seconds``, then give up at the next failure; return whether all is done."""
        if self._thread is not None:
            self._thread.join(seconds)
        self._over.set()
        return self.done

    def _persist(self, work: Callable[[], None], before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        for wait in chain(RETRY_SECONDS, repeat(LONGEST_WAIT_S)):
            try:
                work()
            except Exception as error:  # every service's client raises its own kinds
                if not self._failing:
                    logger.warning("%s; tried again while training goes on", self._said(error))
                self._failing = True
                if self._over.wait(wait):
                    return
                continue
            if self._failing:
                logger.info("%s can be written again", self._remote.url)
            self._failing = False
            return

    def _said(self, error: Exception) -> str:
        return str(self._remote.failed(error, "written"))
