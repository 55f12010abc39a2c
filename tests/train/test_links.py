"""Links between neighbouring ranks: each is measured once, and a slow one is named."""

import math

import pytest
from ranks import run_ranks

from gam_scale.train.links import Link, _rounds, measure_links, slow_links


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 9])
def test_rounds_cover_the_ring_and_use_a_rank_once(n):
    rounds = _rounds(n)
    links = [link for pairs in rounds for link in pairs]
    ring = {frozenset((i, (i + 1) % n)) for i in range(n)} if n > 1 else set()
    assert len(links) == len(ring) and {frozenset(link) for link in links} == ring
    for pairs in rounds:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_rank_knows_every_rate(n):
    found = run_ranks(measured, n)
    assert all(each == found[0] for each in found)
    assert len(found[0]) == (n if n > 2 else 1)
    assert all(math.isfinite(rate) and rate > 0 for _, _, rate in found[0])
    assert all(hosts == [f"host{a}", f"host{b}"] for (a, b), hosts, _ in found[0])


def measured(world):
    links = measure_links(world, [f"host{rank}" for rank in range(world.world_size)])
    return [[list(link.ranks), list(link.hosts), link.bytes_per_s] for link in links]


def test_a_slow_link_is_measured_against_its_like():
    within = [Link((i, i + 1), ("a", "a"), 100e9) for i in range(3)]
    between = [Link((i, i + 1), ("a", "b"), 10e9) for i in range(3)]
    assert slow_links(within + between) == []
    bad = Link((7, 8), ("b", "c"), 1e9)
    assert slow_links([*within, *between, bad]) == [bad]
    assert str(bad) == "rank 7 on b with rank 8 on c at 1000 MB/s"
    assert slow_links([]) == []
