"""tools/plot_runs.py on what `runs/*` names, and what it refuses to write."""

import json
import os
import re

import pytest

from gam_scale.report.figure import FIXED


@pytest.fixture
def runs(tmp_path):
    """Make a folder with a run with losses, a run only begun, a foreign folder and a file."""
    folder = tmp_path / "runs"
    for name in ("good", "begun", "foreign"):
        (folder / name).mkdir(parents=True)
    lines = [{"step": i, "tokens": i * 64, "loss": 4.0 / i, "val_loss": 3.0} for i in (1, 2)]
    (folder / "good" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "begun" / "metrics.jsonl").write_text("")
    (folder / "loss.png").write_text("an earlier figure")
    return folder


def test_what_is_no_run_is_left_out_and_said(tool, runs, tmp_path):
    out = tmp_path / "loss.png"
    done = tool("plot_runs", *sorted(runs.iterdir()), "--out", out)
    assert done.status == 0, f"one folder without metrics stops all: {done}"
    assert out.read_bytes().startswith(b"\x89PNG")
    left = [line for line in done.err.splitlines() if line.startswith("leaving out")]
    assert len(left) == 3 and "good" not in "".join(left)


@pytest.mark.parametrize("name", ["folder", "loss", "loss.txt"])
def test_a_figure_goes_to_the_file_that_was_named_or_nowhere(tool, runs, tmp_path, name):
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    done = tool("plot_runs", runs / "good", "--out", tmp_path / name)
    assert done.status == 2 and "expected a file that ends in .png" in done.err, done
    assert sorted(os.listdir(tmp_path)) == before, "a file of another name was written"


def test_nothing_to_plot_is_one_sentence(tool, runs, tmp_path):
    done = tool("plot_runs", runs / "begun", "--out", tmp_path / "loss.png")
    assert done.status == 2 and "error: no RUN holds a metrics.jsonl" in done.err


def test_lines_have_the_dashes_of_their_keys(tool, runs, tmp_path):
    for i in range(9):
        (runs / f"r{i}").mkdir()
        (runs / f"r{i}" / "metrics.jsonl").write_bytes((runs / "good/metrics.jsonl").read_bytes())
    assert tool("plot_runs", *sorted(runs.glob("r?")), "--out", tmp_path / "loss.svg").status == 0
    dashes = re.findall("stroke-dasharray: ([^;]*);", (tmp_path / "loss.svg").read_text())
    dashed = sum(FIXED.dash(i) != "-" for i in range(9))
    assert dashed and len(dashes) == 2 * dashed, "a line is drawn otherwise than its key"
