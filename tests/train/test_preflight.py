"""Checks before training: what would fail hours later fails at once, naming rank and host."""

import os
import shutil
from pathlib import Path

import pytest
from ranks import run_ranks

from gam_scale.data.shards import TokenSplit
from gam_scale.errors import UserError
from gam_scale.parallel import world as ranks
from gam_scale.train import preflight as module
from gam_scale.train.preflight import (
    RankCheck,
    check_rank,
    differing_gpus,
    differing_versions,
    preflight,
    skewed_clocks,
)


@pytest.fixture
def world():
    yield ranks.start("cpu")
    ranks.stop()


def found(rank, clock=100.0, **versions):
    return RankCheck(rank, f"host{rank}", {"torch": "2", "python": "3"} | versions, clock)


def test_a_sound_machine_passes_and_leaves_nothing(tmp_path, world):
    preflight(world, tmp_path, 1000)
    assert not list(tmp_path.iterdir())


def test_too_little_disk(tmp_path, world):
    with pytest.raises(UserError, match="rank 0 on .* GB free at .*one more checkpoint"):
        preflight(world, tmp_path, 10**15)


def test_a_folder_that_cannot_be_written(tmp_path, world):
    here = check_rank(world, tmp_path / "missing", 0)
    assert "cannot write" in here.problems[0] and "No such file" in here.problems[0]


def test_a_damaged_shard_is_found(tmp_path, world, prepared_set):
    copy = tmp_path / "set"
    shutil.copytree(prepared_set, copy)
    split = TokenSplit(copy, "train", tmp_path / "cache")
    assert check_rank(world, tmp_path, 0, [split]).hashed == len(split.info.shards)
    shard = copy / "train" / split.info.shards[-1].file
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1  # the size stays, so only the hash tells
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"rank 0 on .* finds damaged data: .*{shard.name}"):
        preflight(world, tmp_path, 1000, [split])


def test_the_rank_with_another_version_is_named():
    ranks = [found(0), found(1), found(2, torch="1")]
    (text,) = differing_versions(ranks)
    assert text.startswith("rank 2 on host2 has torch 1; expected 2 ")


def test_the_rank_with_another_clock_is_named():
    (text,) = skewed_clocks([found(0), found(1, clock=40.0), found(2)])
    assert text.startswith("rank 1 on host1 has a clock -60 s off")


def test_gpus_of_several_models_are_named():
    ranks = [found(0), found(1), found(2)]
    assert differing_gpus(ranks) == ""
    for each, gpu in zip(ranks, ("H100", "A100", "H100"), strict=True):
        each.gpu = gpu
    assert differing_gpus(ranks).startswith("the ranks have 2 x H100, 1 x A100: ")


def test_every_rank_says_who_failed(tmp_path):
    """The sound rank ends with the same sentence as the rank that fails."""
    said = run_ranks(one_fails, 2, folder=str(tmp_path))
    assert said[0] == said[1]
    assert "rank 1 on " in said[0] and "torch broken" in said[0] and "rank 0" not in said[0]


def one_fails(world, folder):
    real = module.check_rank

    def sabotaged(*arguments):
        mine = real(*arguments)
        if world.rank == 1:
            mine.problems.append("has torch broken; expected it whole")
        return mine

    module.check_rank = sabotaged
    try:
        preflight(world, Path(folder), os.cpu_count())
    except UserError as error:
        return str(error)
