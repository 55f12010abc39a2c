"""Tasks that a run evaluates its model on while it trains (``eval.tasks``)."""

import json
import os
import signal

import pytest
from conftest import WORDS
from engines import ENGINES
from ranks import run_ranks
from whole_runs import assert_equal_runs, killed_after, measured, train

from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.errors import UserError
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.run.metrics_file import read_metrics


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict:
    """Return a task of each kind that fits a context of 48 tokens."""
    file = tmp_path_factory.mktemp("tasks") / "words.jsonl"
    rows = [
        {"context": f"the {a} sees the", "choices": [b, c], "answer": i % 2}
        for i, (a, b, c) in enumerate(zip(WORDS, WORDS[3:], WORDS[7:], strict=False))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "words": {"kind": "choice", "file": str(file)},
        "last": {"kind": "last_word", "passages": 6, "tokens": 40},
        "recall": {"kind": "recall", "size": [24, 3], "words": 8, "texts": 5},
    }


def train_on_ranks(world, config):
    train(config)


def settings(tasks: dict, **more: object) -> dict:
    return {"train": {"steps": 10}, "eval": {"every_steps": 5, "tasks": tasks, **more}}


def test_tasks_are_curves_and_leave_the_run_as_it_is(tmp_path, tiny, whole, curve, tasks):
    plain, run = whole(**settings({})), tmp_path / "run"
    with killed_after(7):
        train(tiny(run, **settings(tasks)))
    train(tiny(run, **settings(tasks)))
    assert_equal_runs(plain, run, curve)
    found = measured("task/", run)
    assert sorted(found) == [5, 10]
    figures = {"accuracy", "accuracy_per_byte", "bits_per_byte", "chance"}
    assert {k.split("/")[2] for k in found[10] if k.startswith("task/words/")} == figures
    assert found[10]["task/words/bits_per_byte"] < found[5]["task/words/bits_per_byte"]
    assert found[10] == measured("task/", whole(**settings(tasks)))[10]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["task/recall/accuracy"] == found[10]["task/recall/accuracy"]
    header, *rows = (run / "evaluations.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["5", "10"] and "val_loss" in header.split(",")
    column = header.split(",").index("task/recall/accuracy")
    assert float(rows[1].split(",")[column]) == found[10]["task/recall/accuracy"]
    page, log = ((run / name).read_text() for name in ("report.html", "logs/rank0.log"))
    assert "share of right answers" in page and "  recall 0." in log


def test_a_signal_while_they_are_asked_is_seen_at_once(tmp_path, tiny, whole, tasks, monkeypatch):
    run, asked, original = tmp_path / "run", [], PlainStrategy.logits

    def logits(self, *inputs):
        asked.append(1)
        if len(asked) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *inputs)

    monkeypatch.setattr(PlainStrategy, "logits", logits)
    config = tiny(run, **settings(tasks, tasks_every=3))
    train(config)
    assert len(asked) == 3
    newest = CheckpointStore(run / "checkpoints").latest()
    assert newest is not None and load_state(newest).to_evaluate and not measured("task/", run)
    train(config)
    # At step 3 only the tasks were due: the resumed run validates at the same steps as a whole one.
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "val_loss" in line] == [5, 10]
    assert measured("task/", run) == measured("task/", whole(**settings(tasks, tasks_every=3)))
    assert sorted(measured("task/", run)) == [3, 6, 9, 10]


@pytest.mark.parametrize("engine", ["zero3-context", "fsdp"])
def test_ranks_answer_together(tmp_path, tiny, whole, tasks, engine):
    short = settings(tasks) | {"model": {"dropout": 0.0}, "train": {"steps": 2, "warmup_steps": 1}}
    one = measured("task/", whole(**short))
    parallel = ENGINES[engine] | {"device": "cpu"}
    run_ranks(train_on_ranks, 2, config=tiny(tmp_path / "two", parallel=parallel, **short))
    # Log-probabilities, and the figures made of them, come from float32 sums in another order.
    assert measured("task/", tmp_path / "two")[2] == pytest.approx(one[2], rel=1e-4)


def test_what_cannot_be_asked_is_said_before_anything_is_written(tmp_path, tiny):
    for given, message in (
        ({"r": {"kind": "riddle"}}, "eval.tasks.r is .*; expected an object"),
        ({"n": {"kind": "needle"}}, "eval.tasks.n: the tokenizer has .* too few for 32 candidates"),
        ({"a b": {"kind": "needle"}}, 'eval.tasks has the name "a b"'),
    ):
        with pytest.raises(UserError, match=message):
            train(tiny(tmp_path / "run", eval={"tasks": given}))
    assert not (tmp_path / "run" / "config.json").exists()
