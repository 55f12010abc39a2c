"""A checkpoint written in format 1, by the code of that format, resumes with the same losses.

tests/golden/format_1 was written by two ranks of ZeRO stage 3, which cut tensors within rows.
"""

from pathlib import Path

import pytest
import torch
from engines import ENGINES
from ranks import run_ranks

CHECKPOINT = Path(__file__).parents[1] / "golden" / "format_1" / "step-00000003"
LOSSES = [3.905597686767578, 3.915393829345703, 3.9306650161743164]
"""Losses of the steps after the checkpoint, by the code that wrote it."""


def resumed(world, engines):
    """Return, by engine, the losses of the steps after the checkpoint."""
    from gam_scale.checkpoint.restore import restore
    from gam_scale.checkpoint.state import load_state
    from gam_scale.checkpoint.store import load_config_of
    from gam_scale.config import ParallelConfig
    from gam_scale.parallel.build import build_strategy
    from gam_scale.strict import from_dict

    results = {}
    for engine in engines:
        config = load_config_of(CHECKPOINT)
        config.parallel = from_dict(ParallelConfig, ENGINES[engine])
        strategy = build_strategy(config, world.arranged(config.parallel), compiled=False)
        restore(strategy, CHECKPOINT)
        first = load_state(CHECKPOINT).step
        results[engine] = [loss(strategy, first + n) for n in range(len(LOSSES))]
    return results


def loss(strategy, number):
    """Train a step on random tokens, drawn with the seed ``number``; return its loss."""
    from gam_scale.data.packing import Batch
    from gam_scale.model.layout import Layout
    from gam_scale.train.step import train_step

    world = strategy.world
    tokens = torch.randint(50, (4, 13), generator=torch.Generator().manual_seed(number))
    rows = tokens.chunk(world.world_size)[world.rank]
    layout = Layout.stream(len(rows), 12)
    batch = Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), layout)
    loss_sum, _, _ = train_step(strategy, [batch], 1e-2, max_norm=0.5)
    return world.sum(float(loss_sum))[0] / (4 * 12)


@pytest.mark.parametrize(
    "world_size, engines", [(1, ["torch"]), (2, ["torch", "fsdp", "zero1", "zero3"])]
)
def test_a_checkpoint_of_format_1_resumes(world_size, engines):
    (results, *_) = run_ranks(resumed, world_size, engines=engines)
    for engine, losses in results.items():
        # fp32, on another processor and with another order of additions.
        assert losses == pytest.approx(LOSSES, rel=1e-6), engine


def test_its_counts_are_read():
    from gam_scale.checkpoint.canonical import CanonicalTensors

    tensors = CanonicalTensors(CHECKPOINT)
    assert tensors.content()["step.norm.bias"] == ([], torch.float32)
    assert tensors.read("step", "norm.bias", (), ()) == 3
