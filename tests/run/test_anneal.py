"""A decay on demand: its rates, a kill during it, and the plateau, which it leaves unchanged."""

import json
import shutil
from pathlib import Path

import pytest
from closeness import off
from ranks import run_ranks
from whole_runs import after_step, assert_equal_runs, killed_after, last_tensors, train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import AnnealConfig, TrainConfig
from gam_scale.errors import UserError
from gam_scale.run.directory import RunDir
from gam_scale.schedule import learning_rate, shared_steps

WSD = {"steps": 20, "schedule": "wsd", "decay_ratio": 0.2, "min_lr_ratio": 0.1, "warmup_steps": 3}
QUIET = {"eval": {"every_steps": 0}, "log": {"every_steps": 1}}
KEPT = {"checkpoint": {"every_steps": 4, "keep_last": 9, "background": False}}


def anneal(config: dict, steps: int) -> None:
    """Train as ``tools/pretrain.py --anneal-now STEPS`` does."""
    train(config, anneal=steps)


def rates(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines]


def steps_of(run):
    return CheckpointStore(run / "checkpoints").steps()


@pytest.fixture(scope="module")
def annealed(tmp_path_factory, tiny):
    """Return a run killed after step 9, whose decay then began at its checkpoint of step 8."""
    run = tmp_path_factory.mktemp("anneal") / "run"
    with killed_after(9):
        train(tiny(run, train=WSD, **QUIET, **KEPT))
    anneal(tiny(run, train=WSD, **QUIET, **KEPT), 5)
    return run


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_rates_follow_the_plan_and_then_fall_linearly(schedule):
    plan = TrainConfig(lr=1.0, warmup_steps=10, schedule=schedule, min_lr_ratio=0.1)
    now = TrainConfig(
        **(vars(plan) | {"steps": 65, "anneal": AnnealConfig(from_step=40, steps=25, of_steps=100)})
    )
    found = [learning_rate(now, step, now.steps) for step in range(65)]
    begin = learning_rate(plan, 40, 100)
    assert found[:40] == [learning_rate(plan, step, 100) for step in range(40)]
    assert found[40:] == pytest.approx([0.1 + (begin - 0.1) * (25 - i) / 25 for i in range(25)])
    for longer in (100, 200):
        other = TrainConfig(**(vars(plan) | {"steps": longer}))
        shared = shared_steps(now, other)
        own = [learning_rate(other, step, longer) for step in range(shared)]
        assert own == found[:shared]
        assert shared == (10 if schedule == "cosine" and longer == 200 else 40)


def test_the_decay_is_that_of_a_plan_with_its_end(annealed, tiny, tmp_path, curve):
    """A decay from step 8 over 5 steps is a warmup-stable-decay of 13 steps that decays over 5."""
    train(tiny(tmp_path / "own", train=WSD | {"steps": 13, "decay_ratio": 5 / 13}, **QUIET, **KEPT))
    assert rates(annealed) == pytest.approx(rates(tmp_path / "own"))
    ours, theirs = last_tensors(annealed), last_tensors(tmp_path / "own")
    for key, tensor in theirs.items():
        assert off(ours[key], tensor) < 1e-5, key  # rates agree up to the last bit of a float
    assert 8 in steps_of(annealed), "the plateau could not go on"
    assert json.loads((annealed / "config.json").read_text())["train"]["steps"] == 13


@pytest.mark.parametrize("step", [8, 11])
def test_a_kill_in_the_decay(annealed, tmp_path, tiny, curve, step):
    """A killed decay goes on with the same command, and with one that asks for no decay."""
    config = tiny(tmp_path / "run", train=WSD, **QUIET, **KEPT)
    with killed_after(9):
        train(config)
    if step > 8:
        with killed_after(step):
            anneal(config, 5)
        with killed_after(12):
            anneal(config, 5)
    else:
        (tmp_path / "run" / "anneal-now").write_text("5\n")
    train(config)
    assert_equal_runs(annealed, tmp_path / "run", curve)
    assert not (tmp_path / "run" / "anneal-now").exists()


def test_a_file_asks_a_running_job(annealed, tmp_path, tiny, curve):
    """It begins after the next logged line; a file without a number is reported and removed."""
    config, file = tiny(tmp_path / "run", train=WSD, **QUIET, **KEPT), tmp_path / "run/anneal-now"
    with (
        after_step(3, lambda: file.write_text("soon")),
        after_step(8, lambda: file.write_text("5\n")),
    ):
        train(config)
    assert_equal_runs(annealed, tmp_path / "run", curve)
    log = (tmp_path / "run" / "logs" / "rank0.log").read_text()
    assert 'has "soon"; expected a number of steps' in log
    assert log.count("comes down from step 8 over 5 steps") == 1
    assert not file.exists()


def test_a_file_in_the_warm_up_waits_until_rates_can_come_down(tmp_path, tiny):
    """The first four rates of this warm-up are at most half the peak, with which a decay ends."""
    slow = {"steps": 12, "schedule": "constant", "warmup_steps": 8, "min_lr_ratio": 0.5}
    config, file = tiny(tmp_path / "run", train=slow, **QUIET, **KEPT), tmp_path / "run/anneal-now"
    with after_step(1, lambda: file.write_text("3")), killed_after(2):
        train(config)  # before there is a checkpoint
    train(config)
    assert not file.exists()
    noted = json.loads((tmp_path / "run" / "anneal.json").read_text())
    assert (noted["from_step"], noted["steps"]) == (4, 3)
    plan = TrainConfig(**(vars(TrainConfig()) | slow | {"lr": config["train"]["lr"]}))
    peak = learning_rate(plan, 4, 12)
    assert rates(tmp_path / "run")[:5] == [learning_rate(plan, step, 12) for step in range(5)]
    assert len(rates(tmp_path / "run")) == 7 and max(rates(tmp_path / "run")) == peak


def train_and_ask(world, config, file):
    """Train; the main rank, which alone looks for the file, writes it after step 8."""
    with after_step(8, lambda: world.is_main and Path(file).write_text("5")):
        train(config)


def test_ranks_agree_on_the_file(annealed, tmp_path, tiny):
    config = tiny(tmp_path / "run", train=WSD, model={"dropout": 0.0}, **QUIET, **KEPT)
    run_ranks(train_and_ask, 2, config=config, file=str(tmp_path / "run" / "anneal-now"))
    assert rates(tmp_path / "run") == rates(annealed)


def test_a_branch_anneals_and_its_plateau_goes_on(annealed, tmp_path, tiny, whole, curve):
    plateau = tmp_path / "plateau"
    with killed_after(9):
        train(tiny(plateau, train=WSD, **QUIET, **KEPT))
    before = {path: path.read_bytes() for path in plateau.rglob("*") if path.is_file()}
    branch = KEPT["checkpoint"] | {"branch_of": str(plateau)}
    config = tiny(tmp_path / "branch", train=WSD, checkpoint=branch, **QUIET)
    with killed_after(10):
        anneal(config, 5)
    assert before == {path: path.read_bytes() for path in plateau.rglob("*") if path.is_file()}
    train(tiny(plateau, train=WSD, **QUIET, **KEPT))  # meanwhile
    train(config)
    assert_equal_runs(annealed, tmp_path / "branch", curve)
    assert_equal_runs(whole(train=WSD, **QUIET, **KEPT), plateau, curve)


def test_the_plateau_goes_on_from_a_run_that_was_annealed(annealed, tmp_path, tiny, whole, curve):
    checkpoint = KEPT["checkpoint"] | {"branch_of": str(annealed)}
    train(tiny(tmp_path / "on", train=WSD, checkpoint=checkpoint, **QUIET))
    assert_equal_runs(whole(train=WSD, **QUIET, **KEPT), tmp_path / "on", curve)


def test_what_cannot_be_annealed_is_one_sentence(annealed, whole, tmp_path, tiny, run_tool, capsys):
    with pytest.raises(UserError, match="has no checkpoint to begin a decay at"):
        anneal(tiny(tmp_path / "new", train=WSD, **QUIET), 5)
    assert not RunDir(tmp_path / "new").config.exists()
    ended = shutil.copytree(whole(train=WSD, **QUIET, **KEPT), tmp_path / "ended")
    low = "is 3.0e-04, not above the 3.0e-04 with which a decay ends; expected a checkpoint"
    with pytest.raises(UserError, match=low):
        anneal(tiny(ended, train=WSD, **QUIET, **KEPT), 5)
    bad = WSD | {"anneal": {"from_step": 3, "steps": 4, "of_steps": 20}}
    with pytest.raises(UserError, match="begins at 3 and has 4 steps but train.steps is 20"):
        train(tiny(tmp_path / "new", train=bad, **QUIET))
    assert run_tool("pretrain", "--config", "x", "--fresh", "--anneal-now", 3) == 2
    assert "--anneal-now needs the run that --fresh removes" in capsys.readouterr().err
