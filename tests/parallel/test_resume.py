"""Any engine on any number of ranks resumes what any other engine and number of ranks saved."""

import itertools
from pathlib import Path

import pytest
from engines import EVERYWHERE, Trial, first_step
from ranks import run_ranks

BEFORE, AFTER = 3, 3
WORLDS = (1, 2, 4)


def save_all(world, sets, folder, engines):
    """Train, save and train on; return the losses after the checkpoint, by engine."""
    results = {}
    for engine in engines:
        trial = Trial(world, sets, engine, micro_batch_size=2)
        first = first_step(trial.stream)
        for step in range(first, first + BEFORE):
            trial.step(step)
        path = Path(folder) / f"{engine}-{world.world_size}"
        results[engine] = trial.saved_and_going_on(path, first, BEFORE, AFTER)
    return results


def load_all(world, sets, folder, pairs):
    """Resume each source's checkpoint under its engine; return the losses of each pair."""
    from gam_scale.checkpoint.store import CheckpointStore

    results = []
    for source, engine in pairs:
        path = CheckpointStore(Path(folder) / source).latest()
        trial = Trial(world, sets, engine, micro_batch_size=2, seed=1)  # other initial weights
        results.append(trial.losses_after(path, AFTER))
    return results


@pytest.fixture(scope="module")
def saved(prepared_set, tmp_path_factory):
    """Return a folder of checkpoints and, by source, the losses of the run that went on."""
    folder = tmp_path_factory.mktemp("checkpoints")
    losses = {}
    for world_size in WORLDS:
        engines = (*EVERYWHERE, "hybrid") if world_size == 4 else EVERYWHERE
        results = run_ranks(
            save_all, world_size, sets=str(prepared_set), folder=str(folder), engines=engines
        )
        losses |= {f"{engine}-{world_size}": results[0][engine] for engine in engines}
    return folder, losses


def check(saved, prepared_set, world_size, pairs):
    folder, uninterrupted = saved
    results = run_ranks(
        load_all, world_size, sets=str(prepared_set), folder=str(folder), pairs=pairs
    )[0]
    for (source, engine), losses in zip(pairs, results, strict=True):
        if source == f"{engine}-{world_size}":
            assert losses == uninterrupted[source], f"{source} is not resumed bit for bit"
        # fp32, and only the order of additions differs.
        assert losses == pytest.approx(uninterrupted[source], rel=1e-5), (source, engine)


@pytest.mark.parametrize("world_size", WORLDS)
def test_resume(saved, prepared_set, world_size):
    """Each engine resumes its own checkpoint of every world size and one of another engine."""
    pairs = [(f"{e}-{n}", e) for e in EVERYWHERE for n in WORLDS]
    others = itertools.cycle(["zero3-4", "fsdp-2", "zero1-4", "torch-1", "hybrid-4", "zero2-2"])
    pairs += [(next(others), engine) for engine in EVERYWHERE]
    check(saved, prepared_set, world_size, pairs)


@pytest.mark.matrix
@pytest.mark.parametrize("world_size", WORLDS)
def test_the_whole_matrix(saved, prepared_set, world_size):
    pairs = [(source, engine) for source in saved[1] for engine in EVERYWHERE]
    check(saved, prepared_set, world_size, pairs)
