"""Parts that the paper lacks, under engines that shard parameters: train, save and resume."""

from pathlib import Path

import pytest
from engines import BATCH, Trial, first_step
from ranks import run_ranks

from gam_scale.checkpoint.restore import restore
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.train.saver import Saver

ENGINES = ("zero3", "fsdp")
BEFORE, AFTER = 3, 3
WINDOW = {"kind": "attention", "n_heads": 4, "n_kv_heads": 2, "window": 9, "qk_norm": True}
MODEL = {
    "layers": [WINDOW, {"kind": "delta", "n_heads": 2, "norm": "layernorm"}],
    "tied_head": False,
    "norm": "rmsnorm",
    "ffn": "swiglu",
    "position": "rotary",
}


def trial(world, sets, engine, rows=2, seed=0):
    return Trial(world, sets, engine, rows, model=MODEL, seed=seed)


def run_on(one, steps):
    return [number for step in steps for number in one.step(step)]


def whole(world, sets):
    """Return losses and norms of the plain engine on one rank, without a stop."""
    one = trial(world, sets, "torch", BATCH)
    first = first_step(one.stream)
    return run_on(one, range(first, first + BEFORE + AFTER))


def trained_and_resumed(world, sets, folder):
    """Return losses and norms of runs that go on, by engine, and of resumed runs.

    The key of a resumed run is "SOURCE ENGINE".
    """
    going_on, resumed = {}, {}
    for engine in ENGINES:
        one = trial(world, sets, engine)
        first = first_step(one.stream)
        middle = first + BEFORE
        going_on[engine] = run_on(one, range(first, middle))
        saver = Saver(CheckpointStore(Path(folder) / engine), world, one.config, b"tokenizer")
        state = TrainState(step=middle, optimizer_steps=BEFORE)
        saver.start(one.strategy.shards(), state, is_best=True)
        going_on[engine] += run_on(one, range(middle, middle + AFTER))
        saver.finish()
    for source in ENGINES:
        for engine in ENGINES:
            one = trial(world, sets, engine, seed=1)  # other initial weights
            restore(one.strategy, CheckpointStore(Path(folder) / source).latest())
            resumed[f"{source} {engine}"] = run_on(one, range(middle, middle + AFTER))
    return going_on, resumed


def test_they_train_and_resume_under_any(prepared_set, tmp_path):
    (expected,) = run_ranks(whole, 1, sets=str(prepared_set))
    results = run_ranks(trained_and_resumed, 2, sets=str(prepared_set), folder=str(tmp_path))
    going_on, resumed = results[0]
    for engine in ENGINES:
        # fp32: only the order of additions differs, more so in norms.
        assert going_on[engine][::2] == pytest.approx(expected[::2], rel=1e-5), engine
        assert going_on[engine][1::2] == pytest.approx(expected[1::2], rel=1e-4), engine
    assert len(resumed) == len(ENGINES) ** 2
    for pair, found in resumed.items():
        source, engine = pair.split()
        after = going_on[source][2 * BEFORE :]
        if source == engine:
            assert found == after, f"{engine} is not resumed bit for bit"
        assert found == pytest.approx(after, rel=1e-4), pair
