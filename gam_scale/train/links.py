"""How fast ranks exchange data: all of them together, and each with its neighbour."""

import time
from dataclasses import dataclass
from statistics import median

import torch
import torch.distributed as dist

from gam_scale.parallel.world import World

MB = 1e6
PROBE_BYTES = 4 << 20
"""Bytes summed over the ranks: some 0.4 s on a link of 10 MB/s, which is too slow to train on."""
SLOW_LINK = 0.25
"""Share of the median rate of like links, within hosts or between them, below which to warn."""


@dataclass(frozen=True)
class Link:
    """The link between two neighbouring ranks, with its measured rate."""

    ranks: tuple[int, int]
    hosts: tuple[str, str]
    bytes_per_s: float
    """Rate in each direction, with both directions in use."""

    @property
    def within(self) -> bool:
        """Whether both ranks are on one host."""
        return self.hosts[0] == self.hosts[1]

    def __str__(self) -> str:
        (a, b), (host, other) = self.ranks, self.hosts
        return f"rank {a} on {host} with rank {b} on {other} at {self.bytes_per_s / MB:.0f} MB/s"


def all_reduce_rate(world: World) -> float:
    """Return how many bytes per second each rank moves in an all-reduce; 0 with one rank."""
    if world.world_size == 1:
        return 0.0
    data = torch.ones(PROBE_BYTES // 4, device=world.device)
    world.all_reduce(data)  # connections are made at the first use
    start = time.monotonic()
    world.all_reduce(data)
    data.sum().item()  # a GPU's work is done only when its result is here
    seconds = time.monotonic() - start
    return 2 * (world.world_size - 1) / world.world_size * PROBE_BYTES / seconds


def measure_links(world: World, hosts: list[str]) -> list[Link]:
    """Measure the rate of every pair of neighbours in the ring of ranks; called by all ranks.

    Pairs that share no rank are measured at the same time, which takes at most two rounds for an
    even number of ranks and three for an odd one.
    """
    rates = torch.zeros(world.world_size, dtype=torch.float64, device=world.device)
    for pairs in _rounds(world.world_size):
        world.barrier()
        own = next((pair for pair in pairs if world.rank in pair), None)
        if own is not None:
            rates[own[0]] += _pair_rate(world, own) / 2  # both ends add their half
    world.all_reduce(rates)
    return [
        Link((a, b), (hosts[a], hosts[b]), float(rates[a]))
        for pairs in _rounds(world.world_size)
        for a, b in pairs
    ]


def slow_links(links: list[Link]) -> list[Link]:
    """Return the links far below the median of their kind, within a host or between hosts."""
    slow = []
    for within in (True, False):
        like = [link for link in links if link.within == within]
        if like:
            bar = SLOW_LINK * median(link.bytes_per_s for link in like)
            slow += [link for link in like if link.bytes_per_s < bar]
    return slow


def _rounds(n: int) -> list[list[tuple[int, int]]]:
    """Return the links (i, i + 1) of a ring of ``n`` ranks, in rounds without a rank twice."""
    links = [(i, (i + 1) % n) for i in range(n if n > 2 else n - 1)]
    odd_one = [links.pop()] if n > 2 and n % 2 else []
    return [part for part in (links[::2], links[1::2], odd_one) if part]


def _pair_rate(world: World, pair: tuple[int, int]) -> float:
    """Return the bytes per second in each direction of a two-rank all-reduce: send all and add."""
    other = pair[1] if world.rank == pair[0] else pair[0]
    data = torch.ones(PROBE_BYTES // 4, device=world.device)
    received = torch.empty_like(data)

    def both_add(size: int) -> None:
        operations = [
            dist.P2POp(dist.isend, data[:size], other),
            dist.P2POp(dist.irecv, received[:size], other),
        ]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        (data[:size] + received[:size]).sum().item()  # a GPU's work is done when this is here

    both_add(1)  # connections are made at the first use
    start = time.monotonic()
    both_add(len(data))
    return PROBE_BYTES / (time.monotonic() - start)
