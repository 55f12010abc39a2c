"""The gradient noise scale: its estimator, engines against autograd, and a run that logs it."""

import json

import pytest
import torch
from engines import Trial
from ranks import run_ranks
from whole_runs import killed_after, train

from gam_scale.config import RunConfig
from gam_scale.config.rules import check_ranks
from gam_scale.data.stream import micro_batches
from gam_scale.errors import UserError
from gam_scale.strict import from_dict
from gam_scale.train.hooks.noise_scale import PartNorms, estimate
from gam_scale.train.step import train_step


def test_estimates_are_unbiased_where_noise_and_gradient_are_known():
    """A target's gradient is G + C^1/2 noise; the parts of a batch have 1, 4 and 7 targets."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
    spread = torch.tensor([1.0, 0.5, 2.0, 0.1], dtype=torch.float64)
    targets, trials = [1, 4, 7], 20_000
    n = sum(targets)
    noise = torch.randn(trials, n, 4, generator=generator, dtype=torch.float64)
    gradients = mean + spread * noise
    parts = torch.stack([part.mean(1) for part in gradients.split(targets, 1)], 1)
    small = (parts.square().sum(-1) * torch.tensor(targets)).sum(1) / n
    norms = gradients.mean(1).norm(dim=-1)
    rows = zip(small.tolist(), norms.tolist(), strict=True)
    found = torch.tensor([estimate(a, b, n, 3) for a, b in rows], dtype=torch.float64)
    truth = torch.tensor([spread.square().sum(), mean.square().sum()])
    errors = found.std(0) / trials**0.5
    assert ((found.mean(0) - truth).abs() < 4 * errors).all()
    assert (errors < truth * 0.1).all(), "too few trials to tell"


def heard(world, sets, engines):
    """Return per engine: the listener's sum, autograd's sum, the number of parts, the next step.

    The sums are, over micro-batches, of targets times the squared norm of the mean gradient.
    """
    results = {}
    for engine in engines:
        trial = Trial(world, sets, engine, 2, z_loss=1e-2)
        share = world.rank, world.world_size
        batches = micro_batches(trial.stream, 0, trial.config.train, *share)
        alone = Trial(world, sets, "torch", 2, z_loss=1e-2).strategy.module
        expected = 0.0
        for batch in batches:
            loss = alone(*batch) / batch.num_targets
            its = torch.autograd.grad(loss, list(alone.parameters()))
            expected += batch.num_targets * sum(float(g.double().square().sum()) for g in its)
        listener = PartNorms(trial.strategy.module, [batch.num_targets for batch in batches])
        train_step(trial.strategy, batches, 1e-2)
        listener.stop()
        total, parts = listener.read()
        after = trial.step(1)  # without a listener
        results[engine] = [total, expected, parts, after]
    return results


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_engine_tells_each_micro_batchs_gradient(prepared_set, world_size):
    engines = ("torch", "zero0", "zero1", "zero2", "zero3") if world_size == 2 else ("torch",)
    ranks = run_ranks(heard, world_size, sets=str(prepared_set), engines=engines)
    for results in ranks:
        for engine, (total, expected, parts, after) in results.items():
            assert total == pytest.approx(expected, rel=1e-4), engine  # fp32 sums
            assert parts == {1: 3, 2: 2}[world_size]
            assert after == pytest.approx(results["torch"][3], rel=1e-4), engine


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_it_and_goes_on_with_it(tmp_path, tiny, whole):
    measured = {"log": {"noise_every": 3}}
    train(tiny(tmp_path / "run", **measured))
    its = {line["step"]: line for line in lines(tmp_path / "run")}
    with_noise = [step for step, line in its.items() if "grad_variance" in line]
    assert with_noise == [3, 6, 9, 12, 15, 18]
    assert all(its[step]["grad_variance"] > 0 for step in with_noise)
    # Measuring does not change the rest of the run.
    at_ends = [line["val_loss"] for line in (lines(whole())[-1], lines(tmp_path / "run")[-1])]
    assert at_ends[0] == at_ends[1]
    assert "Gradient noise scale" in (tmp_path / "run" / "report.html").read_text()
    with killed_after(14):
        train(tiny(tmp_path / "broken", **measured))
    train(tiny(tmp_path / "broken", **measured))
    keys = ("step", "loss", "grad_variance", "grad_square", "noise_scale")
    resumed, undisturbed = (
        [[line.get(key) for key in keys] for line in lines(tmp_path / run)]
        for run in ("broken", "run")
    )
    assert resumed == undisturbed


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parallel": {"engine": "fsdp"}}, "which parallel.engine fsdp with context 1 cuts"),
        ({"parallel": {"context": 2}}, "engine torch or deepspeed with context 1"),
    ],
)
def test_engines_that_cut_gradients_are_refused(tmp_path, tiny, changes, said):
    with pytest.raises(UserError, match=said):
        train(tiny(tmp_path / "run", log={"noise_every": 5}, **changes))


def test_one_micro_batch_is_refused(tmp_path, tiny):
    one = {"train": {"micro_batch_size": 4}, "log": {"noise_every": 5}}
    with pytest.raises(UserError, match="one micro-batch of train.micro_batch_size 4, on one rank"):
        train(tiny(tmp_path / "run", **one))
    check_ranks(from_dict(RunConfig, tiny(tmp_path / "run", **one)), 2)
    # A single stage with one micro-batch is refused too: its steps would silently have no figure.
    halves = [{"steps": 2, "micro_batch_size": 2}, {"steps": 2}]
    staged = one | {"train": one["train"] | {"steps": 4, "stages": halves}}
    with pytest.raises(UserError, match="one micro-batch of train.micro_batch_size 4, on one rank"):
        check_ranks(from_dict(RunConfig, tiny(tmp_path / "run", **staged)), 1)
    halves[1]["micro_batch_size"] = 1
    check_ranks(from_dict(RunConfig, tiny(tmp_path / "run", **staged)), 1)
