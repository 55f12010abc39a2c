"""Signs of life that a job's ranks exchange through its store: two requests per rank and beat.

Each rank writes its own sign. Rank 0 alone reads them all, in one request, and writes a short
summary that the others read: its own sign, a count of the progress that it has seen, and who is
silent. The number of requests thus grows with the ranks, not with their square, and only the answer
to rank 0 grows in size. The others know from the summary that rank 0 lives.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch.distributed as dist

from gam_scale import pulse

SILENCE_S = 5.0
"""Seconds without a sign of life after which the summary names a rank."""
NAMED = 8
"""The most silent ranks that a summary names."""

FAILURE, SUMMARY = "failure", "summary"


@dataclass
class Sign:
    """A rank's last sign of life."""

    count: int
    step: int
    doing: str
    beats: int
    """Pieces of work done so far: progress within a long phase."""
    heard: float
    """When this rank first saw the sign, by its own clock: clocks of nodes differ."""
    moved: float
    """When this rank last saw ``beats`` change or, for rank 0, its count of progress."""

    def __str__(self) -> str:
        return f"step {self.step}, {self.doing}"


@dataclass
class Silence:
    """A rank of which nothing has been heard for a while."""

    rank: int
    seconds: float
    last: str

    def __str__(self) -> str:
        return f"rank {self.rank} is gone: no sign of life for {self.seconds:.0f} s, {self.last}"


class Signs:
    """What this rank knows of all ranks; each makes one, with its own connection to the store."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._count, self._progress = 0, 0
        self._began = time.monotonic()
        self._signs: dict[int, Sign] = {}
        self._silences: list[Silence] = []
        self._failure = ""
        # Reading a key blocks until it exists, so the keys that this rank reads are made first.
        reads = [FAILURE, SUMMARY] if rank else [FAILURE, *map(str, range(1, world_size))]
        for key in reads:
            store.compare_set(key, "", "")

    def beat(self, step: int, doing: str) -> None:
        """Write this rank's sign of life and where it stands; read what the others have written."""
        self._count += 1
        own = self._count, step, doing, pulse.beats()
        self._see(self._rank, *own)
        if self._rank:
            self._store.set(str(self._rank), json.dumps(own))
            self._failure, summary = self._read([FAILURE, SUMMARY])
            if summary:
                self._take(*json.loads(summary))
            return
        self._failure, *_ = self._read_all()
        longest_first = sorted(self._silent_here(), key=lambda s: s.seconds, reverse=True)
        self._silences = longest_first[:NAMED]
        named = [[s.rank, s.seconds, s.last] for s in self._silences]
        self._store.set(SUMMARY, json.dumps([own, self._progress, named]))

    @property
    def failure(self) -> str:
        """The first failure that any rank made known, as of the last beat; empty: none."""
        return self._failure

    def fail(self, text: str) -> None:
        """Make a failure known to all ranks, but only the first: later ones follow from it."""
        self._store.compare_set(FAILURE, "", text)

    def silent(self, seconds: float) -> Silence | None:
        """Return a rank silent for over ``seconds`` (:data:`SILENCE_S` or more); None: no rank."""
        silences = self._silences if not self._rank else [*self._silent_here(), *self._silences]
        return next((silence for silence in silences if silence.seconds > seconds), None)

    def since_progress(self) -> float:
        """Return the seconds since this rank last saw any rank make progress."""
        return time.monotonic() - max(sign.moved for sign in self._signs.values())

    def places(self) -> dict[int, Sign]:
        """Return each rank's last sign, as far as known; ranks other than 0 read them all now."""
        if self._rank and self._store.check([str(r) for r in range(1, self._world_size)]):
            self._read_all()
        return self._signs

    def _read(self, keys: list[str]) -> list[str]:
        return [value.decode() for value in self._store.multi_get(keys)]

    def _read_all(self) -> list[str]:
        others = range(1, self._world_size)
        failure, *texts = self._read([FAILURE, *map(str, others)])
        for rank, text in zip(others, texts, strict=True):
            if text and rank != self._rank:
                self._see(rank, *json.loads(text))
        return [failure, *texts]

    def _take(self, zero: list, progress: int, named: list) -> None:
        """Take in rank 0's summary; progress that it saw of any rank counts as rank 0's here."""
        self._silences = [Silence(*silence) for silence in named if silence[0] != self._rank]
        moved = progress != self._progress
        self._progress = progress
        self._see(0, *zero, moved=moved)

    def _see(
        self, rank: int, count: int, step: int, doing: str, beats: int, *, moved: bool = False
    ) -> None:
        known, now = self._signs.get(rank), time.monotonic()
        if known is not None and known.count == count:
            return
        still = known is not None and not moved and known.beats == beats
        if not still and self._rank == 0:
            self._progress += 1
        when = known.moved if known is not None and still else now
        self._signs[rank] = Sign(count, step, doing, beats, now, when)

    def _silent_here(self) -> Iterator[Silence]:
        """Yield the silent ranks whose signs this rank reads: on rank 0 all others, else rank 0."""
        for rank in range(1, self._world_size) if not self._rank else (0,):
            sign = self._signs.get(rank)
            since = time.monotonic() - (sign.heard if sign else self._began)
            if since > SILENCE_S:
                yield Silence(rank, since, f"last at {sign}" if sign else "nor any before")
