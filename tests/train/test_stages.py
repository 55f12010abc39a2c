"""Runs in stages of other lengths and batches: resumed bit for bit, the same on any ranks."""

import json

import pytest
from ranks import run_ranks
from whole_runs import assert_equal_runs, killed_after, train

from gam_scale.config import RunConfig, load_config
from gam_scale.config.rules import check
from gam_scale.config.stages import mean_over_tokens, total_tokens
from gam_scale.errors import UserError
from gam_scale.model.lm import outline
from gam_scale.strict import from_dict

STAGES = [
    {"steps": 3, "seq_len": 12, "global_batch_size": 6},
    {"steps": 3, "seq_len": 24, "micro_batch_size": 4},
    {"steps": 2, "seq_len": 48, "global_batch_size": 2},
]
STAGED = {
    "model": {"layers": ["static", "delta"], "memory": {"n_heads": 2}, "dropout": 0.1},
    "train": {"steps": 8, "stages": STAGES},
    "checkpoint": {"every_steps": 2, "background": False},
    "log": {"every_steps": 1},
}


LONGER = {"data": {"seq_len": 96}, "model": {"max_seq_len": 96}}


def staged(tiny, run, **changes):
    sections = {name: STAGED.get(name, {}) | changes.get(name, {}) for name in STAGED | changes}
    return tiny(run, **sections)


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("step", [3, 5, 6])
def test_a_run_that_dies_resumes_bit_for_bit(tmp_path, tiny, whole, curve, step):
    """It resumes at step 2, before a stage's end; at 4, within a stage; or at 6, a stage's end."""
    with killed_after(step):
        train(staged(tiny, tmp_path / "run"))
    train(staged(tiny, tmp_path / "run"))
    assert_equal_runs(whole(**STAGED), tmp_path / "run", curve)


def test_lines_report_and_log_know_the_stages(whole):
    run = whole(**STAGED)
    read = [(line["stage"], line["seq_len"], line["batch"]) for line in lines(run)]
    assert read == [(1, 12, 6)] * 3 + [(2, 24, 4)] * 3 + [(3, 48, 2)] * 2
    # Where the text ends within a row, some of the row's targets are missing.
    most = [n * i for n, i in ((72, 3), (96, 3), (96, 2))]
    assert 0.9 * sum(most) < lines(run)[-1]["tokens"] <= sum(most)
    config = from_dict(RunConfig, json.loads((run / "config.json").read_text()))
    assert total_tokens(config) == sum(most)
    model = outline(config.model)
    flops = sum(m * model.flops_per_token(n) for m, n in zip(most, (12, 24, 48), strict=True))
    assert mean_over_tokens(config, model.flops_per_token) == pytest.approx(flops / sum(most))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["flops_per_token"] == pytest.approx(3 * flops / sum(most))
    log = (run / "logs" / "rank0.log").read_text()
    assert "stage 2 of 3 from step 4: 4 sequences of 24 tokens a step" in log
    report = (run / "report.html").read_text()
    assert "<h2>Stages</h2>" in report and ">24</td>" in report


def test_one_stage_is_a_run_without_stages(tmp_path, tiny, whole, curve):
    plain = {"train": {"steps": 8}, "log": {"every_steps": 1}}
    train(tiny(tmp_path / "run", train={"steps": 8, "stages": [{"steps": 8}]}, log=plain["log"]))
    assert_equal_runs(whole(**plain), tmp_path / "run", curve)


def test_stages_to_come_may_change_and_those_done_may_not(tmp_path, tiny, whole, curve):
    """A plateau may be prolonged with a larger batch; a stage already trained may not change."""
    flat = {"schedule": "constant", "steps": 8}
    then = [{"steps": 8}, {"steps": 4, "global_batch_size": 8}]
    with killed_after(7):
        train(tiny(tmp_path / "run", train=flat))
    changed = flat | {"steps": 12, "stages": then}
    train(tiny(tmp_path / "run", train=changed))
    train(tiny(tmp_path / "whole", train=changed))
    assert_equal_runs(tmp_path / "whole", tmp_path / "run", curve)
    then[0]["global_batch_size"] = 2
    with pytest.raises(UserError, match=r"train.stages\[0\].global_batch_size is 2 but the run"):
        train(tiny(tmp_path / "run", train=changed))


def train_on_ranks(world, config):
    """Train; for ``run_ranks``, which has joined the ranks already."""
    train(config)


@pytest.mark.parametrize(
    "parallel",
    [
        {"context": 2},
        {"engine": "fsdp"},
        {"engine": "deepspeed", "zero_stage": 1},
        {"engine": "deepspeed", "zero_stage": 3},
    ],
    ids=["context", "fsdp", "zero1", "zero3"],
)
def test_ranks_and_engines_train_the_same(tmp_path, tiny, whole, parallel):
    """Stages differ in their number of micro-batches, which every engine must follow."""
    model = {"model": {"dropout": 0.0}}
    one = whole(**(STAGED | {"model": STAGED["model"] | model["model"]}))
    config = staged(tiny, tmp_path / "run", parallel=parallel, **model)
    run_ranks(train_on_ranks, 2, config=config)
    losses = [[line["loss"] for line in lines(run)] for run in (one, tmp_path / "run")]
    # Sums of float32 in another order.
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"steps": 7}}, "have 8 steps in all but train.steps is 7; expected the same"),
        (LONGER, "no stage of train.stages has data.seq_len 96; expected .* 48"),
        ({"data": {"seq_len": 36}}, r"stages\[1\].seq_len is 24, which does not divide data"),
        ({"parallel": {"context": 8}}, r"\[0\].seq_len is 12, which parallel.context 8 does not"),
        ({"train": {"stages": [{"seq_len": 48}]}}, r"stages\[0\].steps is missing"),
        ({"train": {"stages": [{"steps": 0}]}}, r"stages\[0\].steps is 0; expected more than 0"),
        ({"train": {"stages": [{"steps": 15, "batch": 4}]}}, r"stages\[0\].batch is not a setting"),
        (
            {"train": {"stages": [{"steps": 8, "weights": {"books": 1}}]}},
            r"stages\[0\].weights names books, no set; expected of prepared",
        ),
        (
            {"train": {"stages": [{"steps": 8, "weights": {"prepared": 0}}]}},
            r"stages\[0\].weights leaves out every set",
        ),
        (
            {"data": {"carry_state": True}, "model": {"position": "none", "layers": ["delta"] * 2}},
            "carry_state does not go with train.stages",
        ),
        ({"train": {"steps": 0, "epochs": 1.0}}, "train.epochs is 1 beside train.stages"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path, tiny, changes, message):
    with pytest.raises(UserError, match=message):
        check(from_dict(RunConfig, staged(tiny, tmp_path / "run", **changes)))


def test_steps_follow_from_the_stages(tmp_path, tiny):
    config = staged(tiny, tmp_path / "run", train={"steps": 0})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_config(tmp_path / "config.json").train.steps == 8
