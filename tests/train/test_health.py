"""The health of the ranks, gathered for each logged line: a slow rank is named, with its host."""

import logging
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from gam_scale.parallel.world import World
from gam_scale.train.health import IN_A_ROW, LASTS, SIDE, Health, RankHealth, read_ranks

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def rank(number, probe_s):
    return RankHealth(number, f"host{number}", probe_s, 0.0, 1e9, 1e9, 0.5)


def test_a_rank_alone_has_memory_and_no_stragglers(tmp_path):
    line = Health(ALONE, tmp_path / "ranks.json").line(3, 0.25)
    assert set(line) == {"max_memory_bytes", "max_rss_bytes", "max_host_memory"}
    assert 50e6 < line["max_rss_bytes"] < 50e9 and 0 < line["max_host_memory"] < 1
    (mine,) = read_ranks(tmp_path / "ranks.json")
    assert (mine.rank, mine.data_wait) == (0, 0.25)


def test_no_file_no_ranks(tmp_path):
    assert read_ranks(tmp_path / "ranks.json") == []


def test_the_slowest_of_the_ranks_is_named(tmp_path):
    """ranks.json has a row for each rank, and all ranks return the same figures."""
    lines = run_ranks(with_a_slow_rank, 3, file=str(tmp_path / "ranks.json"))
    assert lines[0] == lines[1] == lines[2]
    line = lines[0]
    assert (line["slowest_rank"], line["slowdown"], line["max_data_wait"]) == (1, 3.0, 0.5)
    ranks = read_ranks(tmp_path / "ranks.json")
    assert [each.rank for each in ranks] == [0, 1, 2]
    assert [each.probe_s for each in ranks] == [0.25, 0.75, 0.25]
    assert [each.data_wait for each in ranks] == [0.0, 0.25, 0.5]
    assert line["max_rss_bytes"] == max(each.rss_bytes for each in ranks)


def with_a_slow_rank(world, file):
    health = Health(world, Path(file))
    health._probe = lambda: 0.75 if world.rank == 1 else 0.25
    return health.line(5, 0.25 * world.rank)


def test_the_probe_keeps_its_numbers_finite():
    health = Health(ALONE)
    assert health._probe() > 0
    assert torch.isfinite(health._square @ health._square).all()


def test_the_probe_knows_every_kind_of_device():
    assert SIDE.keys() == IN_A_ROW.keys() == {"cpu", "cuda", "mps"}


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Return ``warnings()``, which lists the messages that the package has logged."""
    # A run of an earlier test may have turned propagation off.
    monkeypatch.setattr(logging.getLogger("gam_scale"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("slow, said", [(LASTS - 1, 0), (LASTS, 1), (LASTS + 3, 1)])
def test_a_straggler_is_told_of_once_it_lasts(warnings, slow, said):
    health = Health(ALONE)
    for _ in range(slow):
        health._warn(rank(2, 3.0), 1.8)
    health._warn(rank(2, 1.0), 1.1)
    text = f"rank 2 on host2 computes 1.8 times as long as the median rank, {LASTS} lines in a row"
    assert warnings() == [text] * said


def test_ranks_that_take_turns_are_no_stragglers(warnings):
    health = Health(ALONE)
    for i in range(8):
        health._warn(rank(i % 2, 3.0), 1.8)
    assert warnings() == []
