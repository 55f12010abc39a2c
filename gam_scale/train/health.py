"""The health of each rank, gathered when a line is logged: its pace, its waits, its memory.

Ranks that train one model finish every step together, so the duration of a step does not show
which rank was slow. Two times do, which each rank measures without the others: how long a fixed
matrix product takes on its own device, and how long it has waited for its data.
"""

import json
import logging
import math
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, median_low

import torch
import torch.distributed as dist

from gam_scale.errors import UserError
from gam_scale.files import write_bytes
from gam_scale.hardware.memory import host_memory_in_use, peak_memory_bytes
from gam_scale.model.widest import widest
from gam_scale.parallel.world import World
from gam_scale.strict import read_record

logger = logging.getLogger("gam_scale")

SIDE = {"cpu": 192, "cuda": 2048, "mps": 192}
"""Rows of the probe's square matrices: a product takes 0.1 ms or less on one core or one GPU."""
IN_A_ROW = {"cpu": 1, "cuda": 20, "mps": 20}
"""Products per timing: on a GPU, a single product would time its launch alone."""
TIMINGS = 3
SLOW = 1.5
"""A rank is slow if its probe takes this many times as long as the median rank's, or longer."""
LASTS = 3
"""Lines in a row for which a rank must be slow to be warned of."""


@dataclass(frozen=True)
class RankHealth:
    """One rank at one logged step."""

    rank: int
    host: str
    probe_s: float = field(metadata={"bounds": {"above": 0}})
    """Seconds of the probe, the fixed matrix products: the median of a few timings."""
    data_wait: float
    """Share of the rank's training time that it waited for data."""
    memory_bytes: float
    """Peak of the GPU's tensors; without a GPU, of the process."""
    rss_bytes: float
    """Peak of the process's memory on its host."""
    host_memory: float
    """Share of the host's memory that is in use, by any process."""


@dataclass
class _Ranks:
    """The content of ranks.json."""

    step: int
    ranks: list[RankHealth]


class Health:
    """Measures and gathers :class:`RankHealth`; all ranks create and call it alike.

    Args:
        file: rewritten by rank 0 at every line, with all ranks' figures; None: no file.
    """

    def __init__(self, world: World, file: Path | None = None) -> None:
        self._world, self._file = world, file
        self._hosts: list[str] = [""] * world.world_size
        if world.world_size > 1:
            dist.all_gather_object(self._hosts, socket.gethostname())
        else:
            self._hosts = [socket.gethostname()]
        side = SIDE[world.device.type]
        precision = torch.bfloat16 if world.device.type == "cuda" else torch.float32
        self._square = torch.full((side, side), 1 / side, dtype=precision, device=world.device)
        self._slow_lines = 0
        self._slow_rank = -1

    def line(self, step: int, data_wait: float) -> dict[str, float]:
        """Measure all ranks and return the figures for a logged line.

        Keys: max_memory_bytes, max_rss_bytes, max_host_memory: the largest over all ranks; and with
        several ranks slowest_rank, slowdown (its probe over the median rank's) and max_data_wait.
        """
        ranks = self._gather(data_wait)
        slowest, ratio = max(ranks, key=lambda each: each.probe_s), slowdown(ranks)
        self._warn(slowest, ratio)
        if self._file is not None and self._world.is_main:
            _write(self._file, step, ranks)
        figures: dict[str, float] = {
            "max_memory_bytes": max(each.memory_bytes for each in ranks),
            "max_rss_bytes": max(each.rss_bytes for each in ranks),
            "max_host_memory": max(each.host_memory for each in ranks),
        }
        if len(ranks) > 1:
            figures |= {
                "slowest_rank": slowest.rank,
                "slowdown": ratio,
                "max_data_wait": max(each.data_wait for each in ranks),
            }
        return figures

    def _gather(self, data_wait: float) -> list[RankHealth]:
        world = self._world
        figures = [  # in the order of RankHealth's fields, after rank and host
            self._probe() if world.world_size > 1 else 1.0,
            0.0 if math.isnan(data_wait) else data_wait,  # NaN: no time has passed
            float(peak_memory_bytes(world.device)),
            float(peak_memory_bytes("cpu")),
            host_memory_in_use(),
        ]
        # Each rank fills its own row and the tables are summed, since every backend can sum.
        dtype = widest(world.device)
        table = torch.zeros(world.world_size, len(figures), dtype=dtype, device=world.device)
        table[world.rank] = torch.tensor(figures, dtype=dtype)
        world.all_reduce(table)
        return [
            RankHealth(rank, host, *row)
            for rank, (host, row) in enumerate(zip(self._hosts, table.tolist(), strict=True))
        ]

    def _probe(self) -> float:
        square, on_gpu = self._square, self._world.device.type == "cuda"
        seconds = []
        for _ in range(TIMINGS):
            if on_gpu:
                torch.cuda.synchronize(self._world.device)
            start = time.perf_counter()
            for _ in range(IN_A_ROW[self._world.device.type]):
                square @ square
            if on_gpu:
                torch.cuda.synchronize(self._world.device)
            seconds.append(time.perf_counter() - start)
        return median(seconds)

    def _warn(self, slowest: RankHealth, ratio: float) -> None:
        """Warn of a rank once per slow spell; any rank may be slow in a single line."""
        same = ratio >= SLOW and slowest.rank == self._slow_rank
        self._slow_lines = self._slow_lines + 1 if same else int(ratio >= SLOW)
        self._slow_rank = slowest.rank
        if self._slow_lines == LASTS and self._world.is_main:
            logger.warning(
                "rank %d on %s computes %.1f times as long as the median rank, %d lines in a row",
                slowest.rank,
                slowest.host,
                ratio,
                LASTS,
            )


def slowdown(ranks: list[RankHealth]) -> float:
    """Return the slowest rank's probe time over the median rank's; of two, the faster's."""
    return max(each.probe_s for each in ranks) / median_low(each.probe_s for each in ranks)


def read_ranks(file: Path) -> list[RankHealth]:
    """Return the health of all ranks at the last logged step; empty if nothing was logged.

    Raises:
        UserError: the file is damaged.
    """
    return read_record(_Ranks, file).ranks if file.exists() else []


def _write(file: Path, step: int, ranks: list[RankHealth]) -> None:
    text = json.dumps(asdict(_Ranks(step, ranks))) + "\n"
    with suppress(OSError, UserError):  # a full disk is for a checkpoint to report
        write_bytes(file, text.encode(), synced=False)  # not worth a wait at every line
