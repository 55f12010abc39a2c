"""A sweep trains each cell once, goes on where it stopped, and collects what can be fitted."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from scaling.sweeps import SMALL, write

from gam_scale.errors import UserError
from gam_scale.experiment.code_version import code_version
from gam_scale.scaling.collect import best_multipliers, collect, sensitivity
from gam_scale.scaling.points import from_arrays
from gam_scale.scaling.sweep import sweep_grid
from gam_scale.scaling.sweep_cell import SweepCell
from gam_scale.scaling.sweep_spec import read_sweep

TOOL = Path(__file__).parents[2] / "tools" / "sweep.py"


def as_shipped(data: Path) -> dict:
    """Return configs/sweeps/small.json with one family, shrunk, and with the default engine."""
    spec = json.loads((TOOL.parents[1] / "configs" / "sweeps" / "small.json").read_text())
    shrunk = {key: SMALL[key] for key in ("widths", "budgets", "dial")} | {"data": str(data)}
    shrunk |= {"families": spec["families"][:1], "vocab_size": 320, "seq_len": 48}
    settings = {"parallel": {"device": "cpu"}, "eval": SMALL["set"]["eval"]}
    return spec | shrunk | {"set": spec["set"] | settings}


def run_tool(action: str, spec: Path, out: Path, *more: str) -> warm.Done:
    return warm.run([TOOL, action, "--sweep", spec, "--out", out, *more])


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_runs_once_and_is_collected(tmp_path, prepared_set) -> None:
    changes = as_shipped(prepared_set) | {"lr_multipliers": [2]}
    spec, out = write(tmp_path, **changes), tmp_path / "runs"
    first = run_tool("run", spec, out)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "0 of 3 runs are done" in first.stdout
    assert re.search(r"1 of them branch off a longer run, which saves \S+ FLOPs", first.stdout)
    again = run_tool("run", spec, out)
    assert "3 of 3 runs are done" in again.stdout and "[1/" not in again.stdout
    assert run_tool("collect", spec, out).returncode == 0
    long, short = sorted(rows_of(out / "runs.csv"), key=lambda row: -int(row["tokens"]))
    names = ("params", "tokens", "loss", "flops")
    numbers = [[float(row[name]) for row in (long, short)] for name in names]
    assert len(from_arrays(*numbers)) == 2 and long["seed"] == "0"
    taken = int(long["steps"]) * int(long["batch"]) * int(long["seq_len"])
    assert taken == int(long["tokens"]) and 0 < int(long["warmup_steps"]) < int(short["steps"])
    assert long["params_with_embedding"] == long["params"]  # tied embeddings count as the head's
    assert 0 < int(long["params_without_embedding"]) < int(long["params"])
    rates = rows_of(out / "lr.csv")
    assert [float(row["lr_multiplier"]) for row in rates] == [1, 2]
    assert rates[0]["loss"] == short["loss"] != rates[1]["loss"]
    curves = rows_of(out / "curves.csv")
    cell = f"gam-static-d32-t{short['tokens']}-s0"
    assert {row["run"] for row in curves} == {cell, f"gam-static-d32-t{long['tokens']}-s0"}
    assert long["run"] == short["run"] == "gam-static-d32-s0"  # a bootstrap draws both together
    assert max(int(row["tokens"]) for row in curves) == int(long["tokens"])
    # The branch gives the same result as the same run trained from its own beginning.
    own = json.loads((out / "configs" / f"{cell}.json").read_text())
    own["checkpoint"]["branch_of"] = ""
    own["log"]["run_dir"] = str(tmp_path / "own")
    (tmp_path / "own.json").write_text(json.dumps(own))
    done = warm.run([TOOL.with_name("pretrain.py"), "--config", tmp_path / "own.json"])
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert summary["val_loss"] == float(short["loss"])

    # A run that diverged, or whose data has no validation split, is left out.
    grid = sweep_grid(read_sweep(spec), out)
    varied = next(cell for cell in grid.cells if cell.lr_multiplier != 1)
    path = Path(varied.config.log.run_dir) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"val_loss": None}))
    assert collect(grid, out)[out / "runs.csv"] == 2 and best_multipliers(grid.finished()) == []

    elsewhere = {"data": str(shutil.copytree(prepared_set, tmp_path / "moved"))}
    assert sweep_grid(read_sweep(write(tmp_path, **changes | elsewhere)), out).cells[0].row()
    measured = {"set": changes["set"] | {"eval": changes["set"]["eval"] | {"max_tokens": 100}}}
    for change, message in (
        ({"dial": {"batch_size": 2, "lr": 1}}, "another train.lr"),
        (measured, "another eval.max_tokens"),
        ({"data": str(other_text(tmp_path / "moved"))}, "was trained on the text .*, and .* is "),
    ):
        changed = read_sweep(write(tmp_path, **changes | change))
        with pytest.raises(UserError, match=message):
            sweep_grid(changed, out).cells[0].row()


def other_text(folder: Path) -> Path:
    """Make the manifest of a prepared set that of another text, and return the folder."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["splits"]["train"]["index_sha256"] = "0" * 64
    path.write_text(json.dumps({key: values[key] for key in values if key != "checksum"}))
    return folder


def test_a_dry_run_trains_nothing(tmp_path, prepared_set) -> None:
    spec, out = write(tmp_path, **SMALL | {"data": str(prepared_set)}), tmp_path / "runs"
    done = run_tool("run", spec, out, "--dry-run")
    assert done.returncode == 2 and "--dry-run prints what --submit would" in done.stderr
    assert not out.exists()


@pytest.mark.parametrize("action", ["plan", "run"])
def test_only_runs_that_there_are(tmp_path, prepared_set, action) -> None:
    spec = write(tmp_path, **as_shipped(prepared_set))
    done = run_tool(action, spec, tmp_path / "runs", "--only", "gam-d23")
    assert done.returncode == 2 and not done.stdout
    assert "--only gam-d23 is in no run's name; expected part of one, such as gam-" in done.stderr


def test_it_asks_on_a_terminal(tmp_path, prepared_set) -> None:
    spec, out = write(tmp_path, **SMALL | {"data": str(prepared_set)}), tmp_path / "runs"
    ours, theirs = os.openpty()
    os.write(ours, b"n\n")
    command = [sys.executable, TOOL, "run", "--sweep", spec, "--out", out]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout.endswith("Train them? [y/N] "), done.stderr
    assert re.search(r"2 runs, \S+ FLOPs: < 0.01 hours at 100 GFLOP/s", done.stdout)
    assert not out.exists()
    os.close(ours)
    os.close(theirs)


def test_a_killed_sweep_goes_on(tmp_path, prepared_set) -> None:
    spec, out = write(tmp_path, **SMALL | {"data": str(prepared_set)}), tmp_path / "runs"
    command = [sys.executable, TOOL, "run", "--sweep", spec, "--out", out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweep:
        while "[1/1]" not in sweep.stdout.readline():
            assert sweep.poll() is None
        sweep.kill()
    again = run_tool("run", spec, out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 of 2 runs are done" in run_tool("run", spec, out).stdout


def test_another_machine_goes_on_from_the_file_of_kept_runs(tmp_path, prepared_set) -> None:
    data = {"data": str(prepared_set), "lr_multipliers": [2]}
    spec, kept = write(tmp_path, **SMALL | data), tmp_path / "kept"
    assert run_tool("run", spec, tmp_path / "runs", "--to", kept).returncode == 0
    (tmp_path / "runs").rename(tmp_path / "lost")
    assert run_tool("collect", spec, tmp_path / "lost").returncode == 0
    assert "3 of 3 runs are done" in run_tool("run", spec, tmp_path / "new", "--to", kept).stdout
    assert run_tool("collect", spec, tmp_path / "new", "--to", kept).returncode == 0
    for name in ("runs.csv", "curves.csv", "lr.csv"):
        assert (kept / name).read_bytes() == (tmp_path / "lost" / name).read_bytes()
    assert not (tmp_path / "new").exists()

    # Rows say which code trained the run, and when; rows of an earlier version lack some of this.
    (row, *_) = rows_of(kept / "runs.csv")
    assert row["code_version"] == code_version() and row["began"] < row["ended"]
    lines = (kept / "results.jsonl").read_text().splitlines(keepends=True)
    old = list(map(json.loads, lines))
    assert all("eval" in each["config"] for each in old)
    old = [each | {"config": {k: each["config"][k] for k in ("model", "train")}} for each in old]
    for each in old:
        del each["times"]
    (kept / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in old))
    assert "3 of 3 runs are done" in run_tool("run", spec, tmp_path / "new", "--to", kept).stdout
    (kept / "results.jsonl").write_text("".join(lines))

    # A branch whose trunk is there only as a kept result is trained whole, to the same bits.
    branch = next(c for c in sweep_grid(read_sweep(spec), tmp_path).cells if c.branches)
    others = [line for line in lines if json.loads(line)["cell"] != branch.name]
    (kept / "results.jsonl").write_text("".join(others))
    done = run_tool("run", spec, tmp_path / "new", "--to", kept)
    assert "2 of 3 runs are done" in done.stdout and f"[1/1] {branch.name}\n" in done.stdout
    config = json.loads((tmp_path / "new" / "configs" / f"{branch.name}.json").read_text())
    assert config["checkpoint"]["branch_of"] == ""
    again = (kept / "results.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == others
    mine, before = (next(json.loads(x) for x in of if branch.name in x) for of in (again, lines))
    assert mine["summary"] == before["summary"] and mine["curve"][-1] == before["curve"][-1]

    # Results of other sweeps stay beside this sweep's, and results that do not belong are refused.
    other = write(tmp_path, **SMALL | data | {"lr_multipliers": []})
    assert run_tool("collect", other, tmp_path / "new", "--to", kept).returncode == 0
    assert sorted((kept / "results.jsonl").read_text().splitlines(keepends=True)) == sorted(again)
    faster = write(tmp_path, **SMALL | data | {"dial": {"batch_size": 2, "lr": 1}})
    refused = run_tool("status", faster, tmp_path / "new", "--to", kept)
    assert refused.returncode == 2 and "was trained with another train.lr" in refused.stderr
    settings = json.loads(again[0])
    settings["config"]["eval"]["max_tokens"] = 100
    for text, message in (
        (json.dumps(settings).encode(), "was trained with another eval.max_tokens"),
        (again[0].replace('"text": "', '"text": "0').encode(), "was trained on the text 0"),
        (again[0].replace('"text"', '"texts"').encode(), "results.jsonl:1.texts is not a setting"),
        (b"[]", "results.jsonl:1 is []; expected an object"),
        (b"\xff", "results.jsonl: cannot be read ('utf-8' codec"),
    ):
        (kept / "results.jsonl").write_bytes(text)
        refused = run_tool("status", spec, tmp_path / "nowhere", "--to", kept)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_runs_are_kept_however_they_came_to_be_there(tmp_path, prepared_set) -> None:
    """Runs may be older than --to, here and kept, or have a trunk that was finished elsewhere."""
    data = {"data": str(prepared_set), "budgets": [2000, 4000, 8000]}
    spec, out, kept = write(tmp_path, **SMALL | data), tmp_path / "runs", tmp_path / "kept"
    assert run_tool("run", spec, out).returncode == 0
    assert "3 of 3 runs are done" in run_tool("run", spec, out, "--to", kept).stdout
    whole = (kept / "results.jsonl").read_text().splitlines(keepends=True)
    assert len(whole) == 3
    trunk, *branches = sweep_grid(read_sweep(spec), out).jobs[0]
    (kept / "results.jsonl").write_text("".join(x for x in whole if trunk.name in x))
    (trunk.run_dir / "summary.json").unlink()
    for cell in branches:
        shutil.rmtree(cell.run_dir)
    plan = run_tool("plan", spec, out, "--to", kept).stdout
    assert "1 of them branch off a longer run" in plan, plan
    assert run_tool("run", spec, out, "--to", kept).returncode == 0
    configs = [json.loads(cell.config_path.read_text())["checkpoint"] for cell in branches]
    assert [config["branch_of"] for config in configs] == ["", str(branches[0].run_dir)]
    again = (kept / "results.jsonl").read_text().splitlines(keepends=True)
    summaries = [
        {row["cell"]: row["summary"] for row in map(json.loads, x)} for x in (whole, again)
    ]
    assert summaries[0] == summaries[1]


def test_runs_beyond_the_grid_are_trained_when_asked_and_collected_apart(
    tmp_path, prepared_set
) -> None:
    beyond = [{"families": ["gam"], "width": 64, "budget": 8000}]
    changes = SMALL | {"data": str(prepared_set), "beyond": beyond}
    spec, out, kept = write(tmp_path, **changes), tmp_path / "runs", tmp_path / "kept"
    (far,) = (cell for cell in sweep_grid(read_sweep(spec), out).cells if cell.beyond)
    assert far.name not in run_tool("plan", spec, out).stdout
    plan = run_tool("plan", spec, out, "--beyond").stdout
    assert far.name in plan and f"--at gam:{far.params},{far.tokens}\n" in plan
    assert "0 of 2 runs are done" in run_tool("run", spec, out, "--to", kept).stdout
    assert not far.run_dir.exists()
    assert run_tool("collect", spec, out).returncode == 0 and not (out / "forecast.csv").exists()
    assert "0 of 1 runs are done" in run_tool("run", spec, out, "--to", kept, "--beyond").stdout
    assert "1 done, 0 begun, 0 missing" in run_tool("status", spec, out, "--beyond").stdout
    assert run_tool("collect", spec, tmp_path / "new", "--to", kept).returncode == 0
    (row,) = rows_of(kept / "forecast.csv")
    assert (row["family"], float(row["params"])) == ("gam", far.params)
    assert len(rows_of(kept / "runs.csv")) == 2
    assert not {row["run"] for row in rows_of(kept / "curves.csv")} & {far.name}
    none = write(tmp_path, **SMALL | {"data": str(prepared_set)})
    refused = run_tool("run", none, out, "--beyond")
    assert refused.returncode == 2 and '--beyond needs runs under "beyond"' in refused.stderr


def test_rates_are_compared_on_texts_of_one_length(tmp_path, prepared_set) -> None:
    """A run on longer texts is of the same width, tokens and seed, but no run at another rate."""
    context = {"width": 32, "seq_lens": [96], "up_to": 4000}
    changes = SMALL | {"data": str(prepared_set), "lr_multipliers": [2], "context": context}
    cells = sweep_grid(read_sweep(write(tmp_path, **changes | {"budgets": [4000]})), tmp_path).cells
    assert len(cells) == 3 and len({cell.tokens for cell in cells}) == 1
    rows = sensitivity([(cell, row_of(cell)) for cell in cells])
    assert [row["lr_multiplier"] for row in rows] == [1, 2]


def row_of(cell: SweepCell) -> dict:
    """Return what :func:`sensitivity` reads of a finished run's row."""
    own = {name: getattr(cell, name) for name in ("family", "params", "tokens", "width", "seed")}
    return own | {"lr_multiplier": cell.lr_multiplier, "lr": 1.0, "loss": 1.0}


def test_budgets_added_later_go_on_from_what_is_there(tmp_path, prepared_set) -> None:
    data = {"data": str(prepared_set), "dial": {"batch_size": 2, "warmup_ratio": 0.0}}
    out, ran = tmp_path / "runs", []
    for budgets in ([4000], [4000, 8000], [2000, 4000, 8000]):
        spec = write(tmp_path, **SMALL | data | {"budgets": budgets})
        done = run_tool("run", spec, out)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{len(budgets) - 1} of {len(budgets)} runs are done" in done.stdout
        (name,) = re.findall(r"\[1/1\] (.+)", done.stdout)
        config = json.loads((out / "configs" / f"{name}.json").read_text())
        ran.append((name, Path(config["checkpoint"]["branch_of"]).name))
    # The runs have 42, 83 and 21 steps. The last one could have shared 16 steps, but no checkpoint
    # of these was kept.
    four, eight, two = (name for name, _ in ran)
    assert ran == [(four, ""), (eight, four), (two, "")]
    assert "step-00000033" in (out / eight / "logs" / "rank0.log").read_text()
    assert run_tool("collect", spec, out).returncode == 0
    first: dict[str, int] = {}
    for row in rows_of(out / "curves.csv"):
        first.setdefault(row["run"], int(row["tokens"]))
    # Lines are logged at step 1 and then every 10 steps of 2 sequences of 48 tokens.
    assert first == {four: 96, eight: 40 * 96, two: 96}


SBATCH = """#!/bin/sh
for script; do :; done
cp "$script" "$FAKE/$(date +%N).sh"
echo "Submitted batch job 41"
"""


def test_submission_is_an_array_of_trunks_with_their_branches(tmp_path, prepared_set) -> None:
    submitit = pytest.importorskip("submitit")
    bin = tmp_path / "bin"
    bin.mkdir()
    answers = {
        "scontrol": "echo UP",
        "squeue": "echo '41_0 41 PENDING'; echo '41_1 42 PENDING'",
        "srun": "true",
    }
    scripts = {name: f"#!/bin/sh\n{body}\n" for name, body in answers.items()}
    for name, body in (scripts | {"sbatch": SBATCH}).items():
        (bin / name).write_text(body)
        (bin / name).chmod(0o755)
    env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "FAKE": str(tmp_path)}
    changes = SMALL | {"data": str(prepared_set), "widths": [32, 64]}
    spec, out = write(tmp_path, **changes), tmp_path / "runs"
    command = [TOOL, "run", "--sweep", spec, "--out", out, "--submit"]
    command += ["--partition", "big", "--minutes", "30"]
    done = warm.run(command, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    (script,) = tmp_path.glob("*.sh")
    assert "--partition=big" in script.read_text() and "--array=0-1" in script.read_text()
    pickles = sorted(out.glob("*/jobs/41_*_submitted.pkl"))
    held = [submitit.core.utils.DelayedSubmission.load(path).function for path in pickles]
    for job, (trunk, *rest) in zip(held, sweep_grid(read_sweep(spec), out).jobs, strict=True):
        assert Path(job.config).stem == trunk.name
        assert [Path(path).stem for path in job.then] == [cell.name for cell in rest]
    again = warm.run(command, env=env)
    assert "2 of 2 jobs are queued or running already" in again.stdout, again.stdout
    assert len(list(tmp_path.glob("*.sh"))) == 1
