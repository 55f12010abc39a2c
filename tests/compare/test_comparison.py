"""Whole comparisons at toy size: stages, a kill, results that are kept, pages from rows alone."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gam_scale.compare.comparison import Comparison
from gam_scale.compare.spec import read_spec
from gam_scale.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TASK = {
    "kind": "task",
    "tasks": {
        "pairs": {"recall": {"vocab_size": 32, "train": [[8, 2]], "test": [[8, 2], [16, 2]],
                             "steps": 3, "check_every": 3, "test_texts": 10}, "widths": [16, 32]},
        "bits": {"recall": {"task": "parity", "vocab_size": 2, "train": [[4]], "test": [[4], [8]],
                            "steps": 3, "check_every": 3, "test_texts": 10}, "models": ["scan"]},
    },
    "model": {"n_layers": 1, "position": "none", "dropout": 0.0},
    "models": {"scan": {"layers": ["scan"]},
               "delta": {"layers": [{"kind": "delta", "n_heads": 2}]}},
    "lrs": [1e-3, 1e-2],
    "seeds": [0, 1],
}  # fmt: skip
TEXT = {
    "kind": "text",
    "set": {
        "model": {"d_model": 32, "n_layers": 1, "dropout": 0.0, "position": "none"},
        "data": {"seq_len": 48},
        "train": {"global_batch_size": 2, "compile": "off"},
        "eval": {"max_tokens": 200, "batch_size": 2},
        "log": {"every_steps": 2},
    },
    "models": {
        "delta": {"model": {"layers": [{"kind": "delta"}]}, "fit": {"delta.n_heads": [1, 2]}},
        "static": {"model": {"layers": ["static"], "gam": {"n_slots": 8}}, "state": "own"},
    },
    "size": {"parameters": 12_000, "state": 512},
    "tune_tokens": 200,
    "tokens": 400,
    "lrs": [1e-3, 1e-2],
    "seeds": [0, 1],
    "repeat": 1,
    "measure": {"positions": [32], "max_tokens": 200},
}


@pytest.fixture
def run_tool():
    """``run_tool(*arguments)``: the exit status of tools/compare.py."""

    def run(*arguments: object) -> int:
        path, before = str(ROOT / "tools" / "compare.py"), sys.argv
        sys.argv = [path, *map(str, arguments)]
        try:
            with pytest.raises(SystemExit) as caught:
                runpy.run_path(path, run_name="__main__")
        finally:
            sys.argv = before
        return caught.value.code or 0

    return run


def written(tmp_path: Path, values: dict) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(values))
    return path


def test_tasks_are_learned_at_every_rate_and_by_further_seeds_at_the_best(run_tool, tmp_path):
    spec, out = written(tmp_path, TASK), tmp_path / "out"
    assert run_tool("run", "--spec", spec, "--out", out, "--side-by-side", 2) == 0
    rows = Comparison(read_spec(spec), out).rows()
    groups = {(r["task"], r["model"], r["width"]) for r in rows}
    assert len(groups) == 5 and len(rows) == 5 * 3
    for group in groups:
        mine = [r for r in rows if (r["task"], r["model"], r["width"]) == group]
        first = {r["lr"]: r["checked"] for r in mine if r["seed"] == 0}
        (again,) = (r for r in mine if r["seed"] == 1)
        assert len(first) == 2 and first[again["lr"]] == max(first.values())
    delta = next(r for r in rows if r["model"] == "delta" and r["width"] == 32)
    assert delta["memory"] == 32 * 16 and [s["label"] for s in delta["scores"]] == [
        "2 in 8",
        "2 in 16",
    ]
    made = {p: p.stat().st_mtime_ns for p in (out / "results").iterdir()}
    assert run_tool("run", "--spec", spec, "--out", out) == 0
    assert made == {p: p.stat().st_mtime_ns for p in (out / "results").iterdir()}
    assert run_tool("page", "--spec", spec, "--out", out) == 0
    page = (out / "page" / "report.md").read_text()
    assert (
        "## Task: pairs" in page
        and "2 in 16" in page
        and (out / "page" / "pairs-state.png").exists()
    )
    other = TASK | {"model": TASK["model"] | {"dropout": 0.5}}
    with pytest.raises(UserError, match="has another model than the comparison has now"):
        Comparison(read_spec(written(tmp_path, other)), out).rows()


def test_text_is_tuned_then_trained_then_measured_whatever_kills_it(
    run_tool, tmp_path, prepared_set
):
    spec, out = written(tmp_path, TEXT | {"data": str(prepared_set)}), tmp_path / "out"
    asked = ["run", "--spec", str(spec), "--out", str(out)]
    command = [sys.executable, str(ROOT / "tools" / "compare.py"), *asked]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while not list((out / "results").glob("*.json")) and killed.poll() is None:
        time.sleep(0.1)  # into the second run
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert run_tool(*asked, "--side-by-side", 2) == 0
    rows = Comparison(read_spec(spec), out).rows()
    tuned = [r for r in rows if r.get("stage") == "tune"]
    full = [r for r in rows if r.get("stage") == "full"]
    assert len(tuned) == 4 and len(full) == 3
    for row in (r for r in full if r["seed"] == 0):
        losses = {r["lr"]: r["val_loss"] for r in tuned if r["model"] == row["model"]}
        assert losses[row["lr"]] == min(losses.values())
    again = next(r for r in full if r["seed"] == 1)
    first = {r["model"]: r["val_loss"] for r in full if r["seed"] == 0}
    assert first[again["model"]] == min(first.values())
    assert {r["memory"] for r in full if r["model"] == "delta"} == {512}
    places = [r for r in rows if r.get("what") == "positions"]
    assert len(places) == 3 and all(sum(b[-1] for b in r["bins"]) == r["tokens"] for r in places)
    assert run_tool("page", "--spec", spec, "--out", out) == 0
    page, again = out / "page" / "report.md", tmp_path / "again"
    results = out / "page" / "results.jsonl"
    assert run_tool("page", "--spec", spec, "--results", results, "--to", again) == 0
    assert (again / "report.md").read_text() == page.read_text()
    assert "Loss by position, 32 tokens" in page.read_text()

    longer = {k: TEXT[k] for k in ("kind", "tokens")} | {
        "data": str(prepared_set), "start": ["delta"], "lrs": [1e-3],
        "set": TEXT["set"] | {"model": {}, "data": {"seq_len": 96}}, "measure": {"context": 48},
    }  # fmt: skip
    asked = ["run", "--spec", written(tmp_path, longer), "--out", tmp_path / "long"]
    assert run_tool(*asked) == 2  # nothing to go on from
    assert run_tool(*asked, "--start", out) == 0
    found = Comparison(read_spec(tmp_path / "spec.json"), tmp_path / "long", out).rows()
    assert [r.get("what", r.get("stage")) for r in found] == ["full", "context"]
    assert found[0]["seq_len"] == 96 and found[0]["parameters"] == full[0]["parameters"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "image"}, "has the kind 'image'; expected an object with \"task\" or \"text\""),
        (TASK | {"lrs": []}, "lrs is \\[\\]; expected one value or more"),
        (TASK | {"tasks": {"a": {"models": ["x"]}}}, "tasks.a.models has 'x'; expected some of"),
        (TASK | {"tasks": {"a": {"recall": {"seed": 1}}}}, "a.recall.seed is the comparison's"),
        (TASK | {"models": {"a-b": {}}}, "the name 'a-b' is not accepted"),
        (TEXT | {"start": ["delta"]}, "models and start are both given or both empty"),
        (TEXT | {"tune_tokens": 0}, "with tune_tokens 0; expected one rate"),
        (TEXT | {"reference": "x"}, "reference is 'x'; expected the name of a model"),
        (TEXT | {"tokns": 1}, "tokns is not a setting; did you mean tokens"),
    ],
)  # fmt: skip
def test_what_a_file_cannot_say(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        read_spec(written(tmp_path, values))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "compare").glob("*.json")), ids=str)
def test_shipped_files_can_be_read(path):
    read_spec(path)
