"""Test tools/evaluate.py: measurements of several models, its page, and what it refuses."""

import json
import math
from pathlib import Path

import pytest

from gam_scale.evaluate.loss import LossResult

ROOT = Path(__file__).resolve().parents[2]
FAST = ["recall.vocab_size=32", "recall.steps=2", "recall.train=[[8,2]]", "recall.test=[[8,2]]"]
FAST += ["recall.test_texts=20", "model.d_model=16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny, run_tool) -> list[Path]:
    """Return the runs of a trained GAM and a trained Transformer."""
    folder, found = tmp_path_factory.mktemp("runs"), []
    for block in ("gam", "attention"):
        model = {"block": block, "attention": {"n_heads": 2}}
        config = tiny(folder / block, model=model, train={"steps": 4})
        path = folder / f"{block}.json"
        path.write_text(json.dumps(config))
        assert run_tool("pretrain", "--config", path) == 0
        found.append(folder / block)
    return found


def test_measurements_of_two_checkpoints_and_a_page(runs, run_tool, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the cat sees the dog near the tree. " * 200)
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    capsys.readouterr()  # drop what training printed
    asked = ["--by-position", "--compare", "2-8:24-40", "--reset-ablation", "--windows", 4]
    asked += ["--targets", 3, "--loss", "--text", text, "--report", page, "--json", numbers]
    assert run_tool("evaluate", *runs, *asked) == 0
    shown = capsys.readouterr().out
    for title in ("Models", "Loss by position", "Effective context", "little and much text"):
        assert title in shown
    found = json.loads(numbers.read_text())["checkpoints"]
    assert [c["name"] for c in found] == ["gam", "attention"]
    for c in found:
        bins = c["by_position"]["bins"]
        nats = sum(b["loss"]["mean"] * b["tokens"] for b in bins)
        tokens = sum(b["tokens"] for b in bins)
        assert tokens == c["loss"]["tokens"]
        assert nats / tokens == pytest.approx(c["loss"]["loss"], rel=1e-5)
        assert c["same_tokens"]["sequences"] == 4
        assert c["same_tokens"]["tokens"] == 4 * 14
    assert found[0]["state"] == {"constant": 2 * 2 * 32, "per_token": 0, "windows": []}
    assert found[1]["state"] == {"constant": 0, "per_token": 2 * 2 * 32, "windows": []}
    html = page.read_text()
    assert html.count("<svg class") == 4 and html.count("<table>") == 4
    assert "://" not in html and "<script" not in html and "#0102" not in html


def test_recall_prints_json_and_needs_no_checkpoint(run_tool, capsys):
    sets = [part for item in FAST for part in ("--set", item)]
    assert run_tool("evaluate", "--recall", "--memories", "static,mamba", *sets, "--json") == 0
    found = json.loads(capsys.readouterr().out)["recall"]
    assert [r["kind"] for r in found] == ["static", "mamba"]
    (score,) = found[0]["scores"]
    assert score["task"]["chance"] == 1 / 16 and score["task"]["guess"] == 0.5
    accuracy = score["accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to evaluate; expected a checkpoint, or --recall"),
        (("x", "--set", "recall.steps=1"), "--set changes what --recall trains"),
        (("x", "--compare", "1-2"), "--compare '1-2' is not a pair of spans; expected two ranges"),
        (("x", "--by-position", "--per-octave", "0"), "--per-octave is 0; expected a whole number"),
        (("--recall", "--memories", "gru"), "--memories is gru; expected one of"),
        (("--recall", "--json", "/tmp"), "--json /tmp is a folder; expected a file"),
        (("--recall", "--report", "/tmp"), "--report /tmp is a folder; expected a file"),
        (("--recall", "--report", "/tmp/no/where"), "--report /tmp/no/where lies in no folder"),
        (("x", "--data", "a", "--text", "b"), "--data and --text both name a text"),
    ],
)
def test_mistakes_are_one_sentence(run_tool, capsys, arguments, message):
    assert run_tool("evaluate", *arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_text_too_short_and_positions_too_few(runs, run_tool, tmp_path, capsys):
    text = tmp_path / "short.txt"
    text.write_text("the cat")
    capsys.readouterr()
    assert run_tool("evaluate", runs[0], "--text", text, "--reset-ablation") == 2
    assert "and 49 are needed; expected a longer text" in capsys.readouterr().err
    assert run_tool("evaluate", runs[0], "--needle", "--needle-lengths", "96") == 2
    assert "--needle-lengths is 96; expected 1 to 48" in capsys.readouterr().err
    assert run_tool("evaluate", runs[0], "--needle", "--needle-lengths", "9") == 2
    assert capsys.readouterr().err.startswith("error: --needle: ")


def test_a_loss_that_is_no_number_is_null_in_json(runs, run_tool, tmp_path, capsys, monkeypatch):
    def lost(*args):
        return LossResult(loss=math.nan, tokens=9, bytes=20)

    def constant(name):
        raise AssertionError(f"{name} is not JSON")

    monkeypatch.setattr("gam_scale.evaluate.loss.mean_loss", lost)
    capsys.readouterr()
    assert run_tool("evaluate", runs[0], "--json") == 0
    found = json.loads(capsys.readouterr().out, parse_constant=constant)
    assert found["loss"] is found["perplexity"] is None and found["tokens"] == 9
    for file, which in (("one.json", runs[:1]), ("two.json", runs)):
        assert run_tool("evaluate", *which, "--json", tmp_path / file) == 0
        assert "nan" in capsys.readouterr().out
        json.loads((tmp_path / file).read_text(), parse_constant=constant)
