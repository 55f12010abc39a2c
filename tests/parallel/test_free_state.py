"""Every engine, on any number of ranks, trains, saves and resumes optimizer states of any shape."""

from pathlib import Path

import pytest
import torch
from checkpoints import whole
from engines import EVERYWHERE, Trial, first_step
from ranks import run_ranks

BEFORE, AFTER = 2, 2
WORLDS = (1, 2, 4)
ORACLE = "torch-1"
MATRIX = "blocks.0.ffn.up.weight"


def engines_of(world_size):
    return (*EVERYWHERE, "hybrid") if world_size == 4 else EVERYWHERE


def trial_of(world, sets, engine, **train):
    import toy_optimizers  # noqa: F401 (registers them)

    return Trial(world, sets, engine, micro_batch_size=2, optimizer="toys", **train)


def save_all(world, sets, folder):
    """Train, save and train on; return all losses by engine."""
    results = {}
    for engine in engines_of(world.world_size):
        trial = trial_of(world, sets, engine)
        first = first_step(trial.stream)
        losses = [trial.step(first + s)[0] for s in range(BEFORE)]
        path = Path(folder) / f"{engine}-{world.world_size}"
        losses += trial.saved_and_going_on(path, first, BEFORE, AFTER)
        results[engine] = losses
    return results


def load_all(world, sets, folder, pairs):
    """Resume each source's checkpoint under its engine; return the losses of each pair."""
    from gam_scale.checkpoint.store import CheckpointStore

    results = []
    for source, engine in pairs:
        path = CheckpointStore(Path(folder) / source).latest()
        trial = trial_of(world, sets, engine, seed=1)  # other initial weights
        results.append(trial.losses_after(path, AFTER))
    return results


@pytest.fixture(scope="module")
def saved(prepared_set, tmp_path_factory):
    """Return a folder of checkpoints and, by source, the losses of the run that went on."""
    folder, losses = tmp_path_factory.mktemp("checkpoints"), {}
    for n in WORLDS:
        results = run_ranks(save_all, n, sets=str(prepared_set), folder=str(folder))
        losses |= {f"{engine}-{n}": results[0][engine] for engine in engines_of(n)}
    return folder, losses


def test_all_compute_what_one_process_does(saved):
    folder, losses = saved
    assert len(set(losses[ORACLE])) == BEFORE + AFTER
    for source, its in losses.items():
        # fp32, and only the order of additions differs.
        assert its == pytest.approx(losses[ORACLE], rel=1e-5), source


def test_all_save_the_same_states(saved):
    from gam_scale.checkpoint.canonical import CanonicalTensors
    from gam_scale.checkpoint.store import CheckpointStore

    folder, losses = saved
    oracle = CanonicalTensors(CheckpointStore(folder / ORACLE).latest())
    content, (rows, columns) = oracle.content(), oracle.content()[f"param.{MATRIX}"][0]
    assert content[f"row.{MATRIX}"] == ([rows], torch.float32)
    assert content[f"averages.{MATRIX}"] == ([2, rows, columns], torch.float32)
    assert content[f"count.{MATRIX}"] == ([], torch.int64)
    assert content["momentum.norm.bias"] == ([32], torch.float64)
    assert content["exp_avg.embedding.weight"] == ([320, 32], torch.float32)
    for source in losses:
        tensors = CanonicalTensors(CheckpointStore(folder / source).latest())
        assert tensors.content() == oracle.content(), source
        for key in oracle.tensors:
            ours, theirs = (whole(t, key) for t in (tensors, oracle))
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=f"{source}: {key}")


@pytest.mark.parametrize("world_size", WORLDS)
def test_any_resumes_what_any_saved(saved, prepared_set, world_size):
    """Each engine resumes its own checkpoint and another's, saved on another number of ranks."""
    folder, losses = saved
    engines = engines_of(world_size)
    others = ["zero3-4", "hybrid-4", "zero1-2", "torch-1", "fsdp-4", "zero2-4", "zero0-2"]
    pairs = [(f"{engine}-{world_size}", engine) for engine in engines]
    pairs += list(zip(others[world_size:] + others[:world_size], engines, strict=False))
    results = run_ranks(
        load_all, world_size, sets=str(prepared_set), folder=str(folder), pairs=pairs
    )[0]
    for (source, engine), resumed in zip(pairs, results, strict=True):
        if source == f"{engine}-{world_size}":
            assert resumed == losses[source][BEFORE:], f"{source} is not resumed bit for bit"
        assert resumed == pytest.approx(losses[ORACLE][BEFORE:], rel=1e-5), (source, engine)
