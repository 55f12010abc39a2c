"""tools/reproduce_paper.py on generated text: trains what is missing, goes on, writes the page."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "reproduce_paper.py"
SECONDS = 120


@pytest.fixture
def arguments(prepared_set):
    """Return ``arguments(out, steps)``: the tool's arguments for two small runs of table 3."""

    def make(out: Path, steps: int, *more: str) -> list[str]:
        settings = [f"train.steps={steps}", "train.epochs=0", "train.warmup_steps=1"]
        settings += ["data.seq_len=32", "train.compile=off", "parallel.device=cpu"]
        settings += ["eval.max_tokens=100", "checkpoint.every_steps=2"]
        command = ["--table", "3", "--scale", "0.0625", "--seeds", "0", "--out", str(out)]
        command += ["--wikitext2", str(prepared_set), "--only", "gam-local"]
        return [*command, *(a for s in settings for a in ("--set", s)), *more]

    return make


def test_runs_once_and_writes_the_page(tmp_path, arguments, tool) -> None:
    out = tmp_path / "out"
    command = arguments(out, 3, "--note", "Said by hand.")
    first = tool("reproduce_paper", *command)
    assert first.status == 0 and "0 of 2 runs are done" in first.out, first
    again = tool("reproduce_paper", *command)
    assert "2 of 2 runs are done" in again.out and "[1/" not in again.out
    with open(out / "page" / "runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(r["model"], r["setup"]) for r in rows} == {
        ("gam-local", "paper"),
        ("gam-local", "scaled"),
    }
    for row in rows:
        folder = out / "runs" / f"wikitext2-gam-local-{row['setup']}-s0"
        summary = json.loads((folder / "summary.json").read_text())
        assert float(row["val_loss"]) == summary["val_loss"] and int(row["steps"]) == 3
    html, text = ((out / "page" / f"report.{form}").read_text() for form in ("html", "md"))
    for page in (html, text):
        assert "Table 3: ablations" in page and "944.70" in page and "Said by hand." in page
        assert "scale 0.0625" in page
    assert "http" not in html.replace("http://www.w3.org", "")  # needs no network
    summary = out / "runs" / "wikitext2-gam-local-paper-s0" / "summary.json"
    figures = json.loads(summary.read_text()) | {"val_perplexity": None, "val_loss": None}
    summary.write_text(json.dumps(figures))  # as a run that diverges writes it
    (out / "results" / f"{summary.parent.name}.json").unlink()
    again = tool("reproduce_paper", *command, "--page-only")
    assert again.status == 0 and "diverged" in (out / "page" / "report.md").read_text(), again
    (out / "results" / f"{summary.parent.name}.json").unlink()
    summary.write_text(json.dumps({k: v for k, v in figures.items() if k != "tokens"}))
    again = tool("reproduce_paper", *command, "--page-only")
    assert again.status == 0 and "page: " in again.out and "not on the page: " in again.err, again
    other = tool("reproduce_paper", *arguments(out, 4))
    assert other.status == 2 and "figures made with --set" in other.err


def end_in_first_run(command: list[str], out: Path, how: str) -> Path:
    """Run the tool and end it once its first run has a checkpoint; return that run's log."""
    command = [sys.executable, str(TOOL), *command]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        # In the background of a shell Ctrl-C is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    folder = out / "runs" / "wikitext2-gam-local-paper-s0"
    until = time.monotonic() + SECONDS
    while not list(folder.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    if how == "killed with what it trains":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL if how == "killed alone" else signal.SIGINT)
    assert process.wait(SECONDS) == (130 if how == "interrupted" else -signal.SIGKILL)
    assert not (folder / "summary.json").exists()
    return out / "configs" / f"{folder.name}.log"


@pytest.mark.parametrize(
    ("how", "steps", "said"),
    [
        ("killed with what it trains", 12, "resuming from"),
        ("killed alone", 40, "stopped by a signal at step"),
        ("interrupted", 40, "stopped by a signal at step"),
    ],
)
def test_the_same_command_goes_on(tmp_path, arguments, tool, how, steps, said) -> None:
    out = tmp_path / "out"
    log = end_in_first_run(arguments(out, steps), out, how)
    done = tool("reproduce_paper", *arguments(out, steps))
    assert done.status == 0 and "0 of 2 runs are done" in done.out, done
    assert said in log.read_text()
    assert len(list((out / "results").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--scale", "0"], "--scale is 0; expected a finite number, at least 0.01"),
        (["--scale", "nan"], "--scale is nan"),
        (["--lengths", "0"], "--lengths is 0"),
        (["--seeds", "1", "1"], "--seeds is [1, 1]"),
        (["--only", "gru"], "--only gru is in no run's name"),
        (["--wikitext2", "/nowhere"], "/nowhere/manifest.json: no such file"),
        (["--table", "1"], "--tinystories is missing"),
        (["--set", "train.lr=-1"], "train.lr"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, tool, more, message) -> None:
    done = tool("reproduce_paper", *arguments(tmp_path / "out", 3, *more))
    assert done.status == 2 and message in done.err, done.err
    assert done.err.count("\n") == 1 and not (tmp_path / "out").exists()
