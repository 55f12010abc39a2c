"""Runs that carry states from step to step: resumed bit for bit, the same on any ranks."""

import json

import pytest
from ranks import run_ranks
from whole_runs import killed_after, train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import DataSetConfig, RunConfig
from gam_scale.config.rules import check
from gam_scale.data.stream import TrainStream, open_split
from gam_scale.errors import UserError
from gam_scale.strict import from_dict

ZERO_3 = {
    "engine": "deepspeed",
    "zero_stage": 3,
    "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}
ROWS = 12
CARRYING = {
    "model": {
        "layers": ["delta", "slot"],
        "position": "rotary",
        "dropout": 0.0,
        "memory": {"n_heads": 2, "n_slots": 8, "top_k": 2},
    },
    "data": {"carry_state": True},
    "train": {"global_batch_size": ROWS, "micro_batch_size": 5},
    "checkpoint": {"background": False},
}


@pytest.fixture
def carrying(tiny):
    def make(run_dir, **changes):
        return tiny(run_dir, **changed(changes))

    return make


@pytest.fixture
def whole_carrying(whole):
    """Return ``whole`` for configs that carry states."""
    return lambda **changes: whole(**changed(changes))


def changed(changes):
    """Return ``changes``, merged into the changes of ``tiny`` that make a config carry states."""
    return {name: CARRYING.get(name, {}) | changes.get(name, {}) for name in CARRYING | changes}


def train_on_ranks(world, config):
    """Train; for ``run_ranks``, which has joined the ranks already."""
    train(config)


def lanes_of(prepared_set):
    split = open_split([DataSetConfig(str(prepared_set))], "train", "unused")
    return TrainStream(split, [1.0], 48, "reset", 0, 1 << 20, ROWS).lanes


@pytest.mark.parametrize("step", [7, 13])
def test_a_run_that_dies_resumes_bit_for_bit(tmp_path, carrying, whole_carrying, curve, step):
    whole = whole_carrying()
    with killed_after(step):
        train(carrying(tmp_path / "broken"))
    checkpoint = CheckpointStore(tmp_path / "broken" / "checkpoints").latest()
    carried = list(checkpoint.glob("carried-*"))
    assert len(carried) == 1
    train(carrying(tmp_path / "broken"))
    assert curve(tmp_path / "broken") == curve(whole)
    # Without carried states the curve is another one.
    assert curve(whole_carrying(data={"carry_state": False})) != curve(whole)


def test_an_epoch_ends_within_these_runs(prepared_set):
    """The runs of this file, of up to 20 steps, therefore start their rows anew once."""
    assert 13 < lanes_of(prepared_set).length < 20


@pytest.mark.parametrize("parallel", [{"engine": "fsdp"}, ZERO_3], ids=["fsdp", "zero3"])
def test_two_ranks_do_what_one_does_and_each_resumes_the_other(
    tmp_path, carrying, whole_carrying, curve, parallel
):
    def losses(run):
        return [line["loss"] for line in curve(run)]

    one = whole_carrying()
    sharded = {"parallel": parallel | {"device": "cpu"}}
    run_ranks(train_on_ranks, 2, config=carrying(tmp_path / "two", **sharded))
    # fp32: sums over rows in another order.
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-5)
    half = {"train": carrying(tmp_path)["train"] | {"steps": 7, "schedule": "constant"}}
    rest = {"train": half["train"] | {"steps": 12}}
    run_ranks(train_on_ranks, 2, config=carrying(tmp_path / "half", **half, **sharded))
    train(carrying(tmp_path / "half", **rest))
    never = whole_carrying(**rest)
    assert losses(tmp_path / "half")[-1] == pytest.approx(losses(never)[-1], rel=1e-5)


def test_rows_that_ranks_do_not_divide_are_refused(tmp_path, carrying):
    config = carrying(tmp_path / "run", train={"global_batch_size": 7, "micro_batch_size": 4})
    with pytest.raises(AssertionError, match="global_batch_size is 7, which the 2 ranks do not"):
        run_ranks(train_on_ranks, 2, config=config)


def test_too_little_text_for_the_rows_is_refused(tmp_path, carrying):
    with pytest.raises(UserError, match="too few for data.carry_state with 4096 rows"):
        train(carrying(tmp_path / "run", train={"global_batch_size": 4096}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"layers": ["delta", "attention"]}},
            "attention layers; expected gam and mamba2",
        ),
        ({"model": {"block": "mamba", "layers": []}}, "mamba layers; expected gam and mamba2"),
        ({"model": {"position": "learned"}}, "model.position learned; expected none or rotary"),
        ({"parallel": {"context": 2}}, "parallel.context 2; expected 1"),
        ({"data": {"sets": [{"path": "a"}, {"path": "b"}]}}, "2 data.sets; expected one set"),
        ({"train": {"spike_ratio": 2.0}}, "train.spike_ratio; expected 0, since"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path, carrying, changes, said):
    with pytest.raises(UserError, match=f"data.carry_state does not go with {said}"):
        check(from_dict(RunConfig, carrying(tmp_path, **changes)))


def test_the_report_of_a_run_is_whole(whole_carrying):
    summary = json.loads((whole_carrying() / "summary.json").read_text())
    assert summary["val_perplexity"] > 1
