"""The watchdog: no job hangs; within seconds each rank's log names the failed or missing rank."""

import faulthandler
import json
import logging
import os
import re
import threading
import time
from types import TracebackType

import torch.distributed as dist

from gam_scale import pulse
from gam_scale.cli import EXIT_FAILED, EXIT_USER_ERROR, exit_status
from gam_scale.errors import EndedByOthers, MistakeElsewhere, Stopped
from gam_scale.parallel.flight import write_record
from gam_scale.parallel.signs import SILENCE_S, Sign, Signs
from gam_scale.parallel.world import AGENT_STORE, World

logger = logging.getLogger("gam_scale")

BEAT_S = 0.5
"""Seconds between signs of life."""
READ_S = 4 * BEAT_S
"""Seconds that rank 0 gives the others to read why it ends, where the store ends with it."""
LOST_S = 60.0
"""Seconds without a sign of life after which a rank counts as gone: many, since an interpreter can
be busy in one call for a while. If a collective has failed as well, SILENCE_S is enough."""

NO_STORE = "rank 0 or the launcher, which held the job's store, is gone"

_ECHO = re.compile(r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|NCCL|remote process|peer")
"""How a collective's error reads when another rank is the cause."""


class Watchdog:
    """Writes into the job's store what this rank does, and reads there what the others do.

    It is a context manager around a run. An error that leaves it is made known to all ranks, which
    end with a message of the error and the rank (:class:`~gam_scale.errors.EndedByOthers`).
    :meth:`at` and :func:`gam_scale.pulse.beat` mark progress. When no rank has made progress for
    ``timeout_s``, the log says where each rank stands and which one is behind, and the job ends.
    While one rank does long work of its own and marks progress, the others may wait for it.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self.world, self.timeout_s = world, timeout_s
        self._place = (0, "starting")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, step: int, doing: str) -> None:
        """Note progress: this rank is at ``doing``, in or after optimizer step ``step``."""
        self._place = (step, doing)
        pulse.beat()

    def __enter__(self) -> "Watchdog":
        if self.world.world_size > 1:
            # A connection of its own: on the other one the process group may wait for minutes.
            own = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
            store = dist.PrefixStore("watchdog", own)
            self._signs = Signs(store, self.world.rank, self.world.world_size)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        if error is None or isinstance(error, Stopped):  # which all ranks raise alike
            return
        if cause := self._explain(error):
            logger.error("%s", cause, extra={"on_bar": True})  # logged; the caller prints it
            self._leave_record(cause)
            raise cause from error

    def _explain(self, error: BaseException) -> EndedByOthers | None:
        """Publish this rank's error; if it only echoes another rank's, return that one's."""
        try:
            mistake = exit_status(error) == EXIT_USER_ERROR
            if mistake or not _ECHO.search(str(error)):
                self._publish(f"{type(error).__name__}: {error}", mistake=mistake)
                self._let_others_read()
                return None
            deadline = time.monotonic() + 2 * SILENCE_S
            while time.monotonic() < deadline:
                if cause := self._beat(SILENCE_S):
                    self._let_others_read()
                    return cause
                time.sleep(BEAT_S)
        except RuntimeError:
            return EndedByOthers(NO_STORE)
        return None

    def _watch(self) -> None:
        try:
            while not self._stop.wait(BEAT_S):
                cause = self._beat(LOST_S)
                # Rank 0, which knows where all ranks stand, reports a stall first.
                grace = 0.0 if self.world.is_main else SILENCE_S
                if cause is None and self._signs.since_progress() > self.timeout_s + grace:
                    cause = EndedByOthers(self._stalled())
                    self._publish(str(cause))
                if cause:
                    self._end(cause)
        except RuntimeError:  # the store does not answer
            if _agent_keeps_store():
                self._watch_alone()
            elif not self._stop.is_set():
                self._end(EndedByOthers(NO_STORE))

    def _watch_alone(self) -> None:
        """Watch this rank alone: the launcher, which kept the store, is gone.

        All ranks notice that, save and end. Meanwhile this one may wait for another's slow write,
        whose progress it cannot see; it has ``timeout_s`` for that.
        """
        logger.warning("the launcher, which kept the job's store, is gone")
        known, moved = pulse.beats(), time.monotonic()
        while not self._stop.wait(BEAT_S):
            if (now := pulse.beats()) != known:
                known, moved = now, time.monotonic()
            if time.monotonic() - moved > self.timeout_s:
                self._end(EndedByOthers(NO_STORE))

    def _end(self, cause: EndedByOthers) -> None:
        if self._stop.is_set():  # the main thread is on its way out with an error of its own
            return
        logger.error("%s", cause)
        if not isinstance(cause, MistakeElsewhere):
            faulthandler.dump_traceback(all_threads=True)
        self._leave_record(cause)
        for handler in logging.getLogger().handlers + logger.handlers:
            handler.flush()
        self._let_others_read()
        if self._stop.is_set():
            return
        # The main thread may be inside a collective that never returns.
        os._exit(EXIT_USER_ERROR if isinstance(cause, MistakeElsewhere) else EXIT_FAILED)

    def _leave_record(self, cause: EndedByOthers) -> None:
        """Write the record of this rank's collectives, unless a user's mistake ends the job."""
        if not isinstance(cause, MistakeElsewhere) and (record := write_record(self.world.rank)):
            logger.error("what this rank's collectives had come to: %s", record)

    def _beat(self, silence_s: float) -> EndedByOthers | None:
        """Exchange signs of life; return why the job ends if another rank has failed or is gone."""
        self._signs.beat(*self._place)
        if self._signs.failure:
            mistake, text = json.loads(self._signs.failure)
            return (MistakeElsewhere if mistake else EndedByOthers)(text)
        silence = self._signs.silent(silence_s)
        return EndedByOthers(str(silence)) if silence else None

    def _publish(self, reason: str, *, mistake: bool = False) -> None:
        step, doing = self._place
        text = f"rank {self.world.rank} failed at step {step}, {doing}: {reason}"
        self._signs.fail(json.dumps([mistake, text]))

    def _let_others_read(self) -> None:
        """Wait before rank 0 ends if the store ends with it, that is, if no launcher keeps it."""
        if self.world.is_main and not _agent_keeps_store():
            time.sleep(READ_S)

    def _stalled(self) -> str:
        places = self._signs.places()
        # Ranks that wait in a collective stand at the same place; the missing rank is elsewhere.
        behind = min(places, key=lambda r: (places[r].step, _times(places, r), r))
        where = "; ".join(f"rank {rank}: {sign}" for rank, sign in sorted(places.items()))
        return (
            f"no progress for {self.timeout_s:.0f} s, rank {behind} is missing from what the "
            f"others wait for ({where})"
        )


def _agent_keeps_store() -> bool:
    return os.environ.get(AGENT_STORE) == "True"


def _times(places: dict[int, Sign], rank: int) -> int:
    """Return how many ranks stand where ``rank`` does."""
    return sum(str(sign) == str(places[rank]) for sign in places.values())
