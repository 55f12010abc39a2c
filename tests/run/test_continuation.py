"""A run that continues another keeps its weights, optimizer and place in the data, and no more."""

import json
import shutil

import pytest
import torch
from whole_runs import assert_equal_runs, killed_after, last_tensors, train

from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source
from gam_scale.errors import UserError

STILL = {"model": {"dropout": 0.0}, "eval": {"every_steps": 0}}
FLAT = {"schedule": "constant", "warmup_steps": 0}


@pytest.fixture
def first(tmp_path, whole):
    """Return a run of 8 steps of 4 sequences, a copy that the test may change."""
    return shutil.copytree(whole(train=FLAT | {"steps": 8}, **STILL), tmp_path / "first")


def continued(tiny, run, first, **changes) -> dict:
    settings = FLAT | {"steps": 6} | changes.pop("train", {})
    return tiny(run, train=settings, checkpoint={"continue_from": str(first)}, **STILL, **changes)


def summary(run) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_with_the_same_settings_it_is_the_run_itself_made_longer(tmp_path, tiny, first):
    train(tiny(tmp_path / "whole", train=FLAT | {"steps": 14}, **STILL))
    train(continued(tiny, tmp_path / "run", first))
    ours, theirs = last_tensors(tmp_path / "run"), last_tensors(tmp_path / "whole")
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), f"not kept: {name}"
    told = summary(tmp_path / "run")["continued"]
    assert told["kept"] == ["weights", "optimizer", "place in the data"]
    assert (told["step"], told["first_sample"]) == (8, 32)
    assert told["changed"] == {}


def test_it_goes_on_after_a_kill_without_the_run_that_it_continues(tmp_path, tiny, curve, first):
    config = continued(tiny, tmp_path / "whole", first, train={"lr": 1e-3, "steps": 9})
    train(config)
    config = continued(tiny, tmp_path / "run", first, train={"lr": 1e-3, "steps": 9})
    config["checkpoint"] |= {"background": False}
    with killed_after(7):
        train(config)
    shutil.rmtree(first)
    train(config)
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", curve)
    told = summary(tmp_path / "run")["continued"]
    assert told["changed"] == {"train.lr": [0.003, 0.001]}
    assert "train.lr 0.003 → 0.001" in (tmp_path / "run" / "report.html").read_text()


def test_a_start_killed_before_it_saved_begins_again_with_the_same(tmp_path, tiny, first):
    """The other run has trained on meanwhile; its new checkpoint is used only if it is named."""
    config = continued(tiny, tmp_path / "run", first)
    with killed_after(2):
        train(config)
    assert not CheckpointStore(tmp_path / "run" / "checkpoints").steps()
    train(tiny(first, train=FLAT | {"steps": 9}, **STILL))
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    train(config)
    assert summary(tmp_path / "run")["continued"]["step"] == 8, "killed: it began with another"
    train(continued(tiny, tmp_path / "other", first / "checkpoints" / "step-00000009"))
    assert summary(tmp_path / "other")["continued"]["step"] == 9, "killed: its note outlives it"


def test_a_run_that_has_begun_says_that_it_begins_with_no_other(tmp_path, tiny, first):
    log, nowhere = first / "logs" / "rank0.log", str(tmp_path / "nowhere")
    for steps, source in ((9, "continue_from"), (10, "branch_of"), (11, "init_from")):
        config = tiny(first, train=FLAT | {"steps": steps}, checkpoint={source: nowhere}, **STILL)
        for _ in range(2):  # the second is silent
            train(config)
            found = log.read_text().count(f"checkpoint.{source} {nowhere} is ignored")
            assert found == 1, f"{source}: it is ignored, and {found} lines say so"


def test_another_batch_reads_on_and_other_data_begins_anew(tmp_path, tiny, first):
    """The optimizer is kept, although rates, batch, weight decay and seed may be the new run's."""
    anneal = {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.01}
    train(continued(tiny, tmp_path / "batch", first, train=anneal | {"global_batch_size": 6}))
    told = summary(tmp_path / "batch")["continued"]
    assert told["first_sample"] == 32 and "place in the data" in told["kept"]
    changed = {"global_batch_size", "lr", "schedule", "warmup_steps", "weight_decay"}
    assert set(told["changed"]) == {f"train.{key}" for key in changed}
    train(continued(tiny, tmp_path / "seed", first, train={"seed": 7, "lr": 1e-12}))
    state = load_state(CheckpointStore(tmp_path / "seed" / "checkpoints").latest())
    assert (state.step, state.first_sample, state.optimizer_steps) == (6, 0, 14)
    told = summary(tmp_path / "seed")["continued"]
    assert told["kept"] == ["weights", "optimizer"] and told["changed"]["train.seed"] == [0, 7]
    lines = (tmp_path / "seed" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["step"] == 1 and json.loads(lines[-1])["tokens"] < 6 * 4 * 49


def test_what_cannot_be_continued_is_refused(tmp_path, tiny, first, prepared_set):
    with pytest.raises(UserError, match=r"continue_from: model.d_model is 16 but .* has 32"):
        config = continued(tiny, tmp_path / "run", first)
        config["model"]["d_model"] = 16
        train(config)
    with pytest.raises(UserError, match="holds no checkpoint"):
        train(continued(tiny, tmp_path / "run", tmp_path / "nowhere"))
    with pytest.raises(UserError, match="branch_of is a and .*continue_from is .* at most one"):
        config = continued(tiny, tmp_path / "run", first)
        config["checkpoint"]["branch_of"] = "a"
        train(config)
    source = parse_source(str(prepared_set.parent / "*.txt"))
    prepare(PrepareSpec(tmp_path / "other", [source], vocab_size=300))
    other = {"sets": [{"path": str(tmp_path / "other")}]}
    with pytest.raises(UserError, match="the tokenizer of .* is not that of data.sets"):
        config = continued(tiny, tmp_path / "other-run", first, data=other)
        config["model"]["vocab_size"] = 320
        train(config)
    assert not (tmp_path / "run").exists(), "a refused run has written its directory"
