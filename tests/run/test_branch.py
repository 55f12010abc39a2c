"""A branch of a longer run equals, bit for bit, a run of its own with the same config."""

import pytest
from whole_runs import assert_equal_runs, hooked, killed_after, train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import TrainConfig
from gam_scale.errors import UserError
from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import goodput, read_starts
from gam_scale.schedule import learning_rate, stable_steps
from gam_scale.train.loop import Hook

SHORT = {"steps": 15, "schedule": "wsd", "decay_ratio": 0.2, "warmup_steps": 2}
LONG = SHORT | {"steps": 30}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory, tiny):
    """Train a run of 30 steps that keeps step 12, up to which a run of 15 steps is the same."""
    kept = {"keep_steps": [12], "keep_last": 1, "every_steps": 9}
    run = tmp_path_factory.mktemp("branch") / "trunk"
    train(tiny(run, train=LONG, checkpoint=kept, eval={"every_steps": 0}))
    return run


def branch(tiny, run, trunk, **changes) -> dict:
    sections = {"train": SHORT | changes.pop("train", {}), "eval": {"every_steps": 0}}
    return tiny(run, checkpoint={"branch_of": str(trunk)}, **sections, **changes)


def test_a_branch_is_the_run_of_its_own(tmp_path, tiny, whole, curve, trunk):
    assert CheckpointStore(trunk / "checkpoints").steps() == [12, 30]
    own = whole(train=SHORT, eval={"every_steps": 0})
    train(branch(tiny, tmp_path / "branch", trunk))
    assert_equal_runs(own, tmp_path / "branch", curve)
    assert "step-00000012" in (tmp_path / "branch" / "logs" / "rank0.log").read_text()


@pytest.mark.parametrize("step", [13, 14])
def test_a_branch_that_dies_goes_on(tmp_path, tiny, whole, curve, trunk, step):
    own = whole(train=SHORT, eval={"every_steps": 0})
    config = branch(tiny, tmp_path / "branch", trunk)
    config["checkpoint"]["every_steps"] = 14
    with killed_after(step):
        train(config)
    train(config)
    assert_equal_runs(own, tmp_path / "branch", curve)


def test_the_trunks_later_steps_are_not_its_own(tmp_path, tiny, trunk, monkeypatch):
    """A branch that dies before its first step has nothing to train again."""

    class Dies(Hook):
        def start(self, loop):
            raise RuntimeError

    config = branch(tiny, tmp_path / "branch", trunk)
    with hooked(Dies()), pytest.raises(RuntimeError):
        train(config)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    train(config)
    run = RunDir(tmp_path / "branch")
    assert [start.last_step for start in read_starts(run.starts)] == [12, 12]
    (resume,) = goodput(run).resumes
    assert resume.steps_again == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"lr": 1e-3}}, "train.lr is 0.001 but the run in .*trunk has"),
        ({"train": {"steps": 14}}, "no checkpoint of a step up to 11, .*expected 11 among"),
        ({"model": {"d_model": 16}}, "model.d_model is 16"),
    ],
)
def test_what_is_no_branch_is_refused(tmp_path, tiny, trunk, changes, message):
    with pytest.raises(UserError, match=message):
        train(branch(tiny, tmp_path / "branch", trunk, **changes))
    with pytest.raises(UserError, match="is not a run directory"):
        train(branch(tiny, tmp_path / "other", tmp_path / "nowhere"))


def test_a_decayed_state_is_not_branched_from(tmp_path, tiny, trunk):
    config = branch(tiny, tmp_path / "longer", trunk, train={"steps": 60})
    train(config)
    assert "step-00000012" in (tmp_path / "longer" / "logs" / "rank0.log").read_text()


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 1 / 3, 0.7, 1.0])
def test_rates_agree_up_to_the_stable_steps(schedule, ratio):
    for steps in (1, 7, 30, 97, 100, 1000):
        train = TrainConfig(
            schedule=schedule, decay_ratio=ratio, warmup_steps=min(3, steps), min_lr_ratio=0.1
        )
        shared = stable_steps(train, steps)
        assert 0 <= shared <= steps
        for longer in (steps + 1, 2 * steps, 12_345):
            for step in range(min(shared, stable_steps(train, longer))):
                assert learning_rate(train, step, steps) == learning_rate(train, step, longer)
        if schedule == "wsd" and shared + 2 < steps:  # two steps later the rate has begun to fall
            assert learning_rate(train, shared + 2, steps) < train.lr
