"""Each rank's place: the arithmetic of the axes, torch's mesh, and the rows that a rank reads."""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.testing._internal.distributed.fake_pg import FakeStore

from gam_scale.config import DataSetConfig, ParallelConfig, RunConfig, TrainConfig
from gam_scale.config.axes import AXES, Axes
from gam_scale.config.rules import check_ranks
from gam_scale.data.packing import IGNORE
from gam_scale.data.stream import TrainStream, micro_batches, open_split
from gam_scale.errors import UserError
from gam_scale.parallel.context import part
from gam_scale.parallel.world import World
from gam_scale.strict import from_dict

SIZES = range(1, 9)


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def grids(world_size):
    """Yield every way to divide the ranks: (settings, the axes that they must give)."""
    for context in divisors(world_size):
        readers = world_size // context
        yield {"engine": "torch", "context": context}, Axes(readers, 1, context)
        yield {"zero_stage": 0, "context": context}, Axes(readers, 1, context)
        yield {"zero_stage": 1, "context": context}, Axes(1, readers, context)
        yield {"zero_stage": 3, "context": context}, Axes(1, readers, context)
        yield {"engine": "fsdp", "context": context}, Axes(1, readers, context)
        for shard in divisors(readers):
            settings = {"engine": "fsdp", "context": context, "shard_ranks": shard * context}
            yield settings, Axes(readers // shard, shard, context)


@pytest.mark.parametrize("world_size", SIZES)
def test_every_rank_has_a_place_of_its_own_and_neighbours_along_each_axis(world_size):
    for settings, expected in grids(world_size):
        axes = Axes.of(ParallelConfig(**settings), world_size)
        assert axes == expected, settings
        assert (axes.world_size, axes.readers * axes.context) == (world_size, world_size)
        grid = torch.arange(world_size).view(axes.sizes)
        places = [axes.place(rank) for rank in range(world_size)]
        assert [int(grid[place]) for place in places] == list(range(world_size))
        # Ranks that share sequences are adjacent; one copy of the model is on adjacent ranks too.
        assert axes.groups("context") == grid.view(-1, axes.context).tolist()
        assert axes.groups("shard", "context") == grid.view(-1, axes.holders).tolist()
        assert axes.groups("shard") == grid.mT.reshape(-1, axes.shard).tolist()
        assert (
            axes.groups("replicate") == grid.permute(1, 2, 0).reshape(-1, axes.replicate).tolist()
        )
        assert axes.groups(*AXES) == [list(range(world_size))]
        assert axes.groups() == [[rank] for rank in range(world_size)]
        assert [axes.reader(r) for r in range(world_size)] == [
            place.replicate * axes.shard + place.shard for place in places
        ]


@pytest.mark.parametrize("world_size", SIZES)
def test_torchs_mesh_has_the_same_places_and_groups(world_size):
    for axes, rank in product({axes for _, axes in grids(world_size)}, range(world_size)):
        dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
        try:
            world = World(rank, world_size, rank, world_size, torch.device("cpu"), axes)
            assert tuple(world.mesh.get_coordinate()) == world.place
            for name in AXES:
                assert ranks_of(world.mesh.get_group(name)) in axes.groups(name)
                assert rank in ranks_of(world.mesh.get_group(name))
            sharding = world.sharding_mesh
            assert (sharding.mesh_dim_names, tuple(sharding.shape)) == (
                ("replicate", "shard"),
                (axes.replicate, axes.holders),
            )
            assert ranks_of(sharding.get_group("shard")) in axes.groups("shard", "context")
            assert ranks_of(sharding.get_group("replicate")) in axes.groups("replicate")
            assert sharding.get_local_rank("replicate") == world.place.replicate
        finally:
            dist.destroy_process_group()


def ranks_of(group):
    return dist.get_process_group_ranks(group)


def sums_along(world, settings):
    """Return the sum of rank numbers along each axis of the mesh and along the sharding mesh."""
    world = world.arranged(ParallelConfig(**settings))
    groups = [world.mesh.get_group(name) for name in AXES]
    sums = []
    for group in (*groups, world.sharding_mesh.get_group("shard")):
        number = torch.tensor(float(world.rank))
        dist.all_reduce(number, group=group)
        sums.append(float(number))
    return sums


def test_real_ranks_meet_along_the_axes():
    settings = {"engine": "fsdp", "context": 2, "shard_ranks": 2}
    axes = Axes.of(ParallelConfig(**settings), 4)
    found = run_ranks(sums_along, 4, settings=settings)
    for rank in range(4):
        along = [(name,) for name in AXES] + [("shard", "context")]
        groups = [next(g for g in axes.groups(*names) if rank in g) for names in along]
        assert found[rank] == list(map(sum, groups))


def test_each_rank_reads_the_rows_that_it_always_has_read(prepared_set):
    """Reader r of n gets the rows [G r // n, G (r + 1) // n) of a global batch of G rows.

    Ranks that share sequences are one reader, and each gets its own stretch of every row.
    """
    splits = open_split([DataSetConfig(str(prepared_set))], "train", "unused")
    stream = TrainStream(splits, [1.0], 48, "reset", 0, 1 << 20)
    config, step = TrainConfig(global_batch_size=10, micro_batch_size=3), 3
    whole = torch.stack([torch.as_tensor(s.astype(int)) for s in stream.sequences(30, 10)])
    for world_size, context in ((1, 1), (2, 1), (2, 2), (3, 1), (4, 2), (6, 3), (8, 2), (8, 8)):
        for rank in range(world_size):
            world = World(rank, world_size, rank, world_size, torch.device("cpu"))
            world = world.arranged(ParallelConfig(context=context))
            share = world.reader, world.axes.readers
            batches = [part(b, world) for b in micro_batches(stream, step, config, *share)]
            tokens = torch.cat([batch.tokens for batch in batches])
            targets = torch.cat([batch.targets for batch in batches])
            r, n, length = rank // context, world_size // context, 48 // context
            rows = whole[10 * r // n : 10 * (r + 1) // n]
            first = length * (rank % context)
            assert torch.equal(tokens, rows[:, first : first + length])
            follows = rows[:, first + 1 : first + length + 1]
            assert torch.equal(targets[targets != IGNORE], follows[targets != IGNORE])


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"context": 3}, "parallel.context is 3, which does not divide the 8 ranks of this job"),
        (
            {"engine": "fsdp", "shard_ranks": 3},
            "parallel.shard_ranks is 3, which does not divide the 8 ranks of this job",
        ),
        (
            {"engine": "fsdp", "shard_ranks": 2, "context": 4},
            "parallel.shard_ranks is 2, which parallel.context 4 does not divide: ranks that share "
            "sequences share one copy of the model; expected a multiple of 4, or 0 for all ranks",
        ),
    ],
)
def test_what_the_ranks_cannot_be_divided_into_is_one_sentence(parallel, said):
    with pytest.raises(UserError, match=said):
        check_ranks(from_dict(RunConfig, {"parallel": parallel}), 8)


def test_carried_rows_are_as_many_on_every_rank():
    config = {"data": {"carry_state": True}, "train": {"global_batch_size": 6}}
    check_ranks(from_dict(RunConfig, config), 3)
    with pytest.raises(UserError, match="global_batch_size is 6, which the 4 ranks do not divide"):
        check_ranks(from_dict(RunConfig, config), 4)
