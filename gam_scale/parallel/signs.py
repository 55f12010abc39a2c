"""Signs of life of a job's ranks, exchanged through its store: two requests a rank and beat.

Each rank writes its own sign. Rank 0 alone reads them all, in one request, and writes a summary of
a few numbers that the others read: when it last knew of progress, and who is silent. The number of
requests thus grows with the ranks, not with their square, and only the answer to rank 0 grows in
size. The others know that rank 0 lives by its summary.
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
"""Silent ranks that a summary names at most."""

FAILURE, SUMMARY = "failure", "summary"


@dataclass
class Sign:
    """A rank's last sign of life."""

    count: int
    step: int
    doing: str
    beats: int
    """Pieces of work done in all: progress within a long phase."""
    heard: float
    """When this rank first saw it, on its own clock: clocks of nodes differ."""
    moved: float
    """When this rank first saw it at this place with this many beats, likewise."""

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
    """What this rank knows of all; made by all ranks, each with a connection of its own."""

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._count, self._progress = 0, 0
        self._began = time.monotonic()
        self._signs: dict[int, Sign] = {}
        self._silences: list[Silence] = []
        self._failure = ""
        # A store makes who reads a key wait until it is there.
        reads = [FAILURE, SUMMARY] if rank else [FAILURE, *map(str, range(1, world_size))]
        for key in reads:
            store.compare_set(key, "", "")

    def beat(self, step: int, doing: str) -> None:
        """Say that this rank lives, and where it stands; take in what the others have said."""
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
        """What :meth:`fail` made known first, as of the last beat; empty: nothing."""
        return self._failure

    def fail(self, text: str) -> None:
        """Make a failure known to all ranks, if it is the first: later ones follow from it."""
        self._store.compare_set(FAILURE, "", text)

    def silent(self, seconds: float) -> Silence | None:
        """A rank without a sign of life for ``seconds``, which are :data:`SILENCE_S` or more."""
        silences = self._silences if not self._rank else [*self._silent_here(), *self._silences]
        return next((silence for silence in silences if silence.seconds > seconds), None)

    def since_progress(self) -> float:
        """Seconds since a rank has last been seen to make progress."""
        return time.monotonic() - max(sign.moved for sign in self._signs.values())

    def places(self) -> dict[int, Sign]:
        """Where each rank stands, as far as it has said; for a rank but 0 a request of its own."""
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
        """Rank 0's summary; what it saw of any rank counts as progress of its own here."""
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
        """The silent ones of whose signs this rank reads itself: all on rank 0, else rank 0's."""
        for rank in range(1, self._world_size) if not self._rank else (0,):
            sign = self._signs.get(rank)
            since = time.monotonic() - (sign.heard if sign else self._began)
            if since > SILENCE_S:
                yield Silence(rank, since, f"last at {sign}" if sign else "nor any before")
