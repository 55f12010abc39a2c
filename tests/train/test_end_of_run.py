"""The end of a run: the last checkpoint and the summary are written, whatever else fails."""

import json
import math
import re

import pytest
import torch
from whole_runs import hooked, killed_after, spoiled, train

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.errors import UserError
from gam_scale.train.loop import Hook, Loop


def test_a_run_killed_before_its_summary_gets_it_from_the_same_command(tmp_path, tiny):
    run = tmp_path / "run"
    train(tiny(run, train={"steps": 4}))
    summary = json.loads((run / "summary.json").read_text())
    for name in ("summary.json", "report.html"):
        (run / name).unlink()
    train(tiny(run, train={"steps": 4}))
    assert json.loads((run / "summary.json").read_text()) == summary
    assert (run / "report.html").exists()


def test_a_run_killed_before_its_report_gets_it_from_the_same_command(tmp_path, tiny):
    run = tmp_path / "run"
    train(tiny(run, train={"steps": 4}))
    summary = (run / "summary.json").read_bytes()
    (run / "report.html").unlink()
    train(tiny(run, train={"steps": 4}))
    assert (run / "report.html").exists()
    assert (run / "summary.json").read_bytes() == summary


def test_a_run_that_goes_on_is_not_taken_for_finished(tmp_path, tiny):
    run, longer = tmp_path / "run", {"steps": 8, "schedule": "constant"}
    train(tiny(run, train=longer | {"steps": 4}))
    with killed_after(6):
        train(tiny(run, train=longer))
    left = {"summary.json", "report.html", "evaluations.csv"} & {p.name for p in run.iterdir()}
    assert not left, "what was made of the shorter run is still there"
    train(tiny(run, train=longer))
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((run / "summary.json").read_text())["last_loss"] == last["loss"]
    assert "not finished" not in (run / "report.html").read_text()


def test_a_run_ended_early_does_not_take_an_earlier_steps_figures_as_its_last(
    tmp_path, tiny, capsys
):
    run, constant = tmp_path / "run", {"steps": 20, "schedule": "constant"}
    with killed_after(11):  # with lines of steps 4, 8 and 10, and a checkpoint of step 6
        train(tiny(run, train=constant, log={"every_steps": 4}))
    train(tiny(run, train=constant | {"steps": 6}))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last_loss"] is summary["val_loss"] is None and summary["first_loss"] > 1
    lines = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    by_step = {line["step"]: line["tokens"] for line in lines}
    assert [*by_step] == [1, 4] and by_step[4] < summary["tokens"] <= 6 * 4 * 48
    assert "its last line is of step 4, not 6" in capsys.readouterr().err


def poison(loop: Loop) -> None:
    with torch.no_grad():
        loop.strategy.module.embedding.weight.fill_(math.nan)


@pytest.mark.parametrize(
    ("fault", "changes", "missing"),
    [
        ("null first loss", {}, "first loss +not known"),
        ("NaN weights", {}, "the sample of the finished run is missing: the model's logits"),
        ("largest seed", {"train": {"seed": 2**63 - 1}}, ""),
        ("more ids than the tokenizer", {"model": {"vocab_size": 5000}}, ""),
        ("metrics.jsonl removed", {}, "losses and speeds are missing from the summary"),
        ("report", {}, "report.html of the finished run is missing: no page"),
    ],
)
def test_the_end_of_a_run_does_not_fail(
    tmp_path, tiny, monkeypatch, capsys, fault, changes, missing
):
    from gam_scale.train import summary as end

    run = tmp_path / "run"
    train_settings = {"steps": 5, "warmup_steps": 1} | changes.pop("train", {})

    class Meets(Hook):
        def between(self, loop: Loop) -> None:
            if fault == "NaN weights" and loop.state.step == 5:
                poison(loop)
            if fault == "metrics.jsonl removed" and loop.state.step == 4:
                (run / "metrics.jsonl").unlink()

    def no_page(path):
        raise RuntimeError("no page\nat length")

    if fault == "report":
        monkeypatch.setattr(end, "write_report", no_page)
    with hooked(Meets()), spoiled(*[1] * (fault == "null first loss")):
        train(tiny(run, train=train_settings, log={"every_steps": 1}, **changes))
    assert CheckpointStore(run / "checkpoints").steps()[-1] == 5
    text = (run / "summary.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    summary = json.loads(text)
    assert summary["parameters"] > 0 and summary["tokens"] > 0
    assert (summary["sample"] is None) == (fault == "NaN weights")
    assert (run / "report.html").exists() == (fault != "report")
    said = "".join(capsys.readouterr())
    assert re.search(missing, said), f"{fault}: {said}"
    assert "Traceback" not in said
    state = json.loads((run / "checkpoints" / "step-00000005" / "state.json").read_text())
    assert (state["best_val_loss"] is None) == (fault == "NaN weights")


def test_a_seed_that_a_run_could_not_end_with_is_refused_before_it(tmp_path, tiny):
    with pytest.raises(UserError, match=r"train.seed is 18446744073709551621; expected .*2\*\*63"):
        train(tiny(tmp_path / "run", train={"seed": 2**64 + 5}))
    assert not (tmp_path / "run").exists()
