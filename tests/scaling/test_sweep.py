"""A sweep trains each cell once, goes on where it stopped, and collects what can be fitted."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from gam_scale.errors import UserError
from gam_scale.model.lm import outline
from gam_scale.scaling.points import from_arrays
from gam_scale.scaling.sweep import cells, read_sweep, result

TOOL = Path(__file__).parents[2] / "tools" / "sweep.py"
SPEC = {
    "families": [{"name": "gam"}, {"name": "transformer", "block": "attention"}],
    "widths": [64, 128],
    "budgets": [1e6, 4e6],
    "vocab_size": 320,
    "data": "somewhere",
    "seq_len": 48,
}


def write(folder: Path, **changes: object) -> Path:
    path = folder / "sweep.json"
    path.write_text(json.dumps(SPEC | changes))
    return path


def test_the_dial_sets_every_size(tmp_path) -> None:
    found = cells(read_sweep(write(tmp_path)), tmp_path)
    assert len(found) == len({cell.name for cell in found}) == 8
    assert [cell.flops for cell in found] == sorted(cell.flops for cell in found)
    by_name = {(c.family, c.width, round(c.tokens, -6)): c for c in found}
    small, large = by_name["gam", 64, 1_000_000], by_name["gam", 128, 4_000_000]
    assert (small.config.model.n_layers, large.config.model.n_layers) == (2, 4)
    assert small.config.train.lr == pytest.approx(2 * large.config.train.lr)
    assert large.config.train.global_batch_size == 2 * small.config.train.global_batch_size
    assert large.config.model.memory.n_heads == large.config.model.attention.n_heads == 4
    assert large.config.train.schedule == "wsd"


def test_flops_and_parameters_are_the_models(tmp_path) -> None:
    with_head = cells(read_sweep(write(tmp_path)), tmp_path)[0]
    blocks = cells(read_sweep(write(tmp_path, count="blocks")), tmp_path)[0]
    model = outline(with_head.config.model)
    assert with_head.flops == 3 * model.flops_per_token(48) * with_head.tokens
    assert with_head.params == model.n_parameters() - 48 * with_head.width
    assert with_head.params - blocks.params == 320 * with_head.width


def test_isoflop_budgets_are_flops(tmp_path) -> None:
    found = cells(read_sweep(write(tmp_path, kind="isoflop", budgets=[1e13, 1e14])), tmp_path)
    for cell in found:
        nearest = min((1e13, 1e14), key=lambda budget: abs(budget - cell.flops))
        assert cell.flops == pytest.approx(nearest, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [65]}, "widths has 65; expected multiples"),
        ({"widths": [64, 64]}, "widths has a value twice"),
        ({"families": []}, "families is empty"),
        ({"families": [{"name": "a/b"}]}, "the name 'a/b'"),
        ({"budgets": [1e3]}, "expected at least 10"),
        ({"budget": [1e3]}, "did you mean budgets"),
        ({"vocab_size": 0}, "vocab_size is 0"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message) -> None:
    with pytest.raises(UserError, match=message):
        cells(read_sweep(write(tmp_path, **changes)), tmp_path)


def run_tool(action: str, spec: Path, out: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, TOOL, action, "--sweep", spec, "--out", out]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_sweep_runs_once_and_is_collected(tmp_path, prepared_set) -> None:
    changes = {
        "families": [{"name": "gam"}],
        "widths": [32],
        "budgets": [2000],
        "data": str(prepared_set),
        "dial": {"batch_size": 2},
        "set": {
            "train": {"compile": "off"},
            "parallel": {"engine": "torch", "device": "cpu"},
            "log": {"wandb": "off", "tensorboard": False},
            "eval": {"every_steps": 0, "max_tokens": 200, "batch_size": 2},
        },
    }
    spec, out = write(tmp_path, **changes), tmp_path / "runs"
    first = run_tool("run", spec, out)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "0 of 1 runs are done" in first.stdout
    again = run_tool("run", spec, out)
    assert "1 of 1 runs are done" in again.stdout and "[1/" not in again.stdout
    assert run_tool("collect", spec, out).returncode == 0
    with open(out / "runs.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    numbers = [[float(row[name])] for name in ("params", "tokens", "loss", "flops")]
    assert len(from_arrays(*numbers)) == 1 and row["seed"] == "0"
    changed = read_sweep(write(tmp_path, **changes | {"dial": {"batch_size": 2, "lr": 1}}))
    with pytest.raises(UserError, match="another train.lr"):
        result(cells(changed, out)[0])
