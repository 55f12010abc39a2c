"""Compiled blocks under engines that shard parameters have the losses and norms of eager ones."""

import needs
import pytest
import torch
from engines import Trial
from ranks import run_ranks

ENGINES = ("zero2", "zero3", "fsdp")


def train_all(world, sets):
    """Return losses and norms of three steps: eager with the plain engine, else compiled."""
    trial = Trial(world, sets, "torch", micro_batch_size=3)
    results = {"eager": [trial.step(step) for step in range(3)]}
    for engine in ENGINES:
        torch._dynamo.reset()
        trial = Trial(world, sets, engine, micro_batch_size=3, compiled=True)
        results[engine] = [trial.step(step) for step in range(3)]
        assert trial.strategy.compilation.is_on, f"{engine}: {trial.strategy.compilation}"
        assert trial.strategy.compilation.graphs >= 1, f"{engine} compiled nothing"
    return results


@needs.compiler
def test_compiled_is_eager(prepared_set):
    results = run_ranks(train_all, 2, sets=str(prepared_set))[0]
    for engine in ENGINES:
        for compiled, eager in zip(results[engine], results["eager"], strict=True):
            # fp32: fused operators add in another order.
            assert compiled == pytest.approx(eager, rel=1e-4), engine
