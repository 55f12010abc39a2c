"""Who failed, and who is missing: said on every rank's log, in seconds, instead of a hang."""

import faulthandler
import json
import logging
import os
import re
import threading
import time
from dataclasses import dataclass
from types import TracebackType

import torch.distributed as dist

from gam_scale import pulse
from gam_scale.cli import EXIT_FAILED, EXIT_USER_ERROR
from gam_scale.errors import EndedByOthers, MistakeElsewhere, Stopped, UserError
from gam_scale.parallel.world import AGENT_STORE, World

logger = logging.getLogger("gam_scale")

BEAT_S = 0.5
"""Between signs of life."""
READ_S = 4 * BEAT_S
"""For the others to read why rank 0 ends, where the store ends with it."""
SILENCE_S = 5.0
"""Without a sign of life, after which a rank is gone if a collective has failed as well."""
LOST_S = 60.0
"""The same without any other evidence: an interpreter can be busy in one call for a while."""

NO_STORE = "rank 0 or the launcher, which held the job's store, is gone"

_ECHO = re.compile(r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|NCCL|remote process|peer")
"""How a collective's error reads when another rank is the cause."""


@dataclass
class _Sign:
    """A rank's last sign of life."""

    count: int
    step: int
    doing: str
    beats: int
    """Pieces of work done in all: progress within a long phase."""
    heard: float
    """When this rank first saw it, on its own clock: clocks of nodes differ."""
    moved: float
    """When it first saw a sign of life at that place and with so many beats, likewise."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.doing}"


class Watchdog:
    """Publishes what this rank does in the job's store and reads what the others do.

    As a context manager around a run: an error that leaves it is made known to all ranks, which
    end with it and the rank's number (:class:`~gam_scale.errors.EndedByOthers`). :meth:`at` and
    :func:`gam_scale.pulse.beat` mark progress. When no rank has made any for ``timeout_s``, it is
    logged where each one stands and which one is behind, and the job ends: a rank at long work of
    its own keeps the others waiting.
    """

    def __init__(self, world: World, timeout_s: float) -> None:
        self.world, self.timeout_s = world, timeout_s
        self._place, self._count = (0, "starting"), 0
        self._signs: dict[int, _Sign] = {}
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, step: int, doing: str) -> None:
        """Note progress: ``doing`` what, in or after which optimizer step."""
        self._place = (step, doing)
        pulse.beat()

    def __enter__(self) -> "Watchdog":
        if self.world.world_size > 1:
            # A connection of its own: the process group waits on the other one for minutes.
            self._store = dist.PrefixStore(
                "watchdog", dist.distributed_c10d._get_default_store().clone()
            )
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
            logger.error("%s", cause, extra={"on_bar": True})  # who prints it is the caller's
            raise cause from error

    def _explain(self, error: BaseException) -> EndedByOthers | None:
        """Publish this rank's error, or, where it only echoes another rank's, say whose."""
        try:
            mistake = isinstance(error, UserError)
            if mistake or not _ECHO.search(str(error)):
                self._publish(f"{type(error).__name__}: {error}", mistake=mistake)
                if self.world.is_main and not _agent_keeps_store():
                    time.sleep(READ_S)
                return None
            deadline = time.monotonic() + 2 * SILENCE_S
            while time.monotonic() < deadline:
                self._beat()
                if cause := self._failure() or self._silent(SILENCE_S):
                    return cause
                time.sleep(BEAT_S)
        except RuntimeError:
            return EndedByOthers(NO_STORE)
        return None

    def _watch(self) -> None:
        try:
            while not self._stop.wait(BEAT_S):
                self._beat()
                cause = self._failure() or self._silent(LOST_S)
                if cause is None and self._since_progress() > self.timeout_s:
                    cause = EndedByOthers(self._stalled())
                    faulthandler.dump_traceback(all_threads=True)
                    self._publish(str(cause))
                if cause:
                    self._end(cause)
        except RuntimeError:  # the store does not answer
            if _agent_keeps_store():
                self._watch_alone()
            elif not self._stop.is_set():
                self._end(EndedByOthers(NO_STORE))

    def _watch_alone(self) -> None:
        """The launcher kept the store and is gone: the ranks, who see that too, save and end.

        One may wait for another's slow write meanwhile, and cannot see that it makes progress.
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
        for handler in logging.getLogger().handlers + logger.handlers:
            handler.flush()
        # The main thread may be inside a collective that never returns.
        os._exit(EXIT_USER_ERROR if isinstance(cause, MistakeElsewhere) else EXIT_FAILED)

    def _beat(self) -> None:
        self._count += 1
        sign = json.dumps([self._count, *self._place, pulse.beats()])
        self._store.set(str(self.world.rank), sign)
        for rank in range(self.world.world_size):
            if not self._store.check([str(rank)]):
                continue
            count, step, doing, beats = json.loads(self._store.get(str(rank)))
            known, now = self._signs.get(rank), time.monotonic()
            if known is None or known.count != count:
                still = known is not None and known.beats == beats
                moved = known.moved if still else now
                self._signs[rank] = _Sign(count, step, doing, beats, now, moved)

    def _since_progress(self) -> float:
        """Seconds since a rank has last been seen to make progress."""
        return time.monotonic() - max(sign.moved for sign in self._signs.values())

    def _publish(self, reason: str, *, mistake: bool = False) -> None:
        step, doing = self._place
        text = f"rank {self.world.rank} failed at step {step}, {doing}: {reason}"
        # The first failure is the cause; later ones follow from it.
        self._store.compare_set("failure", "", json.dumps([mistake, text]))

    def _failure(self) -> EndedByOthers | None:
        if not self._store.check(["failure"]):
            return None
        mistake, text = json.loads(self._store.get("failure"))
        return (MistakeElsewhere if mistake else EndedByOthers)(text)

    def _silent(self, seconds: float) -> EndedByOthers | None:
        for rank in range(self.world.world_size):
            sign = self._signs.get(rank)
            since = time.monotonic() - (sign.heard if sign else self._began)
            if rank != self.world.rank and since > seconds:
                last = f"last at {sign}" if sign else "nor any before"
                return EndedByOthers(
                    f"rank {rank} is gone: no sign of life for {since:.0f} s, {last}"
                )
        return None

    def _stalled(self) -> str:
        places = self._signs
        # Ranks that wait in a collective stand at the same place; the missing one elsewhere.
        behind = min(places, key=lambda r: (places[r].step, _times(places, r), r))
        where = "; ".join(f"rank {rank}: {sign}" for rank, sign in sorted(places.items()))
        return (
            f"no progress for {self.timeout_s:.0f} s, rank {behind} is missing from what the "
            f"others wait for ({where})"
        )


def _agent_keeps_store() -> bool:
    return os.environ.get(AGENT_STORE) == "True"


def _times(places: dict[int, _Sign], rank: int) -> int:
    """How many ranks stand where this one does."""
    return sum(str(sign) == str(places[rank]) for sign in places.values())
