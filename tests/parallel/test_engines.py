"""Every engine, world size and split into micro-batches: the same losses, norms and weights."""

import json

import pytest
from ranks import run_ranks

STEPS = 6


def step_before_the_ragged_one(stream) -> int:
    """So that the epoch's last sequence, shorter than the others, is among the steps trained."""
    import numpy as np

    _, order = stream.locate(np.arange(stream.epoch_sequences))
    return max(0, int(np.argmax(order)) // 6 - 1)


def train_all(world, sets, engines, micro_batch_size, precision="fp32"):
    """:func:`train` with one engine after another: the ranks start once."""
    return {
        name: train(world, sets, ENGINES[name], micro_batch_size, precision) for name in engines
    }


def train(world, sets, parallel, micro_batch_size, precision="fp32", documents="reset"):
    """Losses, gradient norms and a checksum of the weights over a few steps; no dropout."""
    import torch

    from gam_scale.config import RunConfig
    from gam_scale.data.stream import TrainStream, micro_batches, open_split
    from gam_scale.parallel.build import build_strategy, initialise
    from gam_scale.strict import from_dict

    config = from_dict(
        RunConfig,
        {
            "model": {
                "d_model": 32,
                "n_layers": 2,
                "vocab_size": 320,
                "max_seq_len": 48,
                "dropout": 0.0,
                "gam": {"n_slots": 16},
            },
            "data": {"sets": [{"path": sets}], "seq_len": 48, "documents": documents},
            "train": {
                "steps": STEPS,
                "global_batch_size": 6,
                "micro_batch_size": micro_batch_size,
                "lr": 1e-2,
                "precision": precision,
            },
            "parallel": parallel,
        },
    )
    splits = open_split(config.data.sets, "train", "unused")
    stream = TrainStream(splits, [1.0], 48, documents, 0, 1 << 20)
    strategy = build_strategy(config, world, compiled=False)
    initialise(strategy, config)
    losses, norms = [], []
    first = step_before_the_ragged_one(stream)
    for step in range(first, first + STEPS):
        batches = micro_batches(stream, step, config.train, world.rank, world.world_size)
        (n_targets,) = world.sum(sum(b.num_targets for b in batches))
        total = torch.zeros((), dtype=torch.float64)
        for i, batch in enumerate(batches):
            total += strategy.backward(batch, 1 / n_targets, last=i == len(batches) - 1)
        (total,) = world.sum(float(total))
        losses.append(total / n_targets)
        norms.append(strategy.step(1e-2, 0.5))
    parts = [s.own_part() for s in strategy.shards() if s.kind == "param"]
    (weights,) = world.sum(sum(float(p.data.double().abs().sum()) for p in parts))
    return {"losses": losses, "norms": norms, "weights": weights}


ZERO_3 = {
    "engine": "deepspeed",
    "zero_stage": 3,
    "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}
ENGINES = {
    "torch": {"engine": "torch"},
    "zero0": {"engine": "deepspeed", "zero_stage": 0},
    "zero1": {"engine": "deepspeed", "zero_stage": 1},
    "zero2": {"engine": "deepspeed", "zero_stage": 2},
    "zero3": ZERO_3,
    "fsdp": {"engine": "fsdp"},
    "hybrid": {"engine": "fsdp", "shard_ranks": 2},
    "fsdp-keep": {"engine": "fsdp", "reshard_after_forward": False},
    "zero2-offload": {"engine": "deepspeed", "zero_stage": 2, "offload": "optimizer"},
    "zero3-offload": ZERO_3 | {"offload": "parameters"},
    "fsdp-offload": {"engine": "fsdp", "offload": "parameters"},
}


@pytest.fixture(scope="module")
def reference(prepared_set):
    """One rank, the plain engine, the whole batch in one forward pass."""
    parallel = ENGINES["torch"]
    return run_ranks(train, 1, sets=str(prepared_set), parallel=parallel, micro_batch_size=6)[0]


def assert_same(ours, reference, rel, engine):
    assert ours["losses"] == pytest.approx(reference["losses"], rel=rel), engine
    assert ours["norms"] == pytest.approx(reference["norms"], rel=10 * rel), engine
    assert ours["weights"] == pytest.approx(reference["weights"], rel=rel), engine


EVERYWHERE = ("torch", "zero0", "zero1", "zero2", "zero3", "fsdp")
OFFLOADED = ("zero2-offload", "zero3-offload", "fsdp-offload")


@pytest.mark.parametrize(
    ("world_size", "engines", "micro_batch_size"),
    [
        (1, EVERYWHERE, 2),
        (2, (*EVERYWHERE, "fsdp-keep", *OFFLOADED), 2),  # ranks of 3 rows: batches of 2 and 1
        (4, (*EVERYWHERE, "hybrid"), 1),  # ranks of 1 and of 2 rows
    ],
)
def test_same_numbers(prepared_set, reference, world_size, engines, micro_batch_size):
    results = run_ranks(
        train_all,
        world_size,
        sets=str(prepared_set),
        engines=engines,
        micro_batch_size=micro_batch_size,
    )
    for engine in engines:
        # fp32: only the order of additions differs.
        assert_same(results[0][engine], reference, rel=1e-5, engine=engine)
    assert all(json.dumps(r) == json.dumps(results[0]) for r in results), "ranks disagree"


def test_bf16_stays_near_fp32(prepared_set, reference):
    engines = EVERYWHERE
    (result, _) = run_ranks(
        train_all,
        2,
        sets=str(prepared_set),
        engines=engines,
        micro_batch_size=6,
        precision="bf16",
    )
    for engine in engines:
        # bf16 keeps 8 bits: 0.4% per product, averaged down in sums over a batch.
        assert result[engine]["losses"] == pytest.approx(reference["losses"], rel=5e-3), engine


def test_these_steps_include_the_ragged_sequence(prepared_set):
    from gam_scale.config import DataSetConfig, TrainConfig
    from gam_scale.data.stream import TrainStream, micro_batches, open_split

    splits = open_split([DataSetConfig(str(prepared_set))], "train", "unused")
    stream = TrainStream(splits, [1.0], 48, "reset", 0, 1 << 20)
    config = TrainConfig(global_batch_size=6, micro_batch_size=6)
    first = step_before_the_ragged_one(stream)
    counts = [micro_batches(stream, first + s, config, 0, 1)[0].num_targets for s in range(STEPS)]
    assert min(counts) < 6 * 48
