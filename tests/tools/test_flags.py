"""Every tool's flags: numbers are checked when parsed, and --device means the same everywhere."""

import ast
from pathlib import Path

import pytest
import torch

from gam_scale.hardware.processor import find_device

ROOT = Path(__file__).resolve().parents[2]
FILES = [
    path
    for folder in ("tools", "benchmarks", "gam_scale")
    for path in ROOT.glob(f"{folder}/**/*.py")
]


def flags(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return (flag, keywords as written) for each option that a file adds to a parser."""
    found = []
    for call in ast.walk(ast.parse(path.read_text())):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            name = str(call.args[0].value)
            if name.startswith("--"):
                found.append((name, {k.arg: ast.unparse(k.value) for k in call.keywords if k.arg}))
    return found


def test_no_flag_takes_a_number_unchecked():
    bare = [
        f"{path.name} {flag}"
        for path in FILES
        for flag, keywords in flags(path)
        if keywords.get("type") in ("int", "float")
    ]
    assert not bare, f"flags whose number is not checked at the door: {bare}"


def test_the_device_flag_stands_in_one_place():
    places = [path.name for path in FILES for flag, _ in flags(path) if flag == "--device"]
    assert places == ["cli.py"], f"tools with a --device of their own: {places}"


@pytest.mark.parametrize("name", ["generate", "evaluate", "reproduce_paper"])
@pytest.mark.parametrize("device", ["mps", "banana", "cuda:0", "cuda"])
def test_a_device_that_is_not_here_is_refused_in_one_sentence(tool, tmp_path, name, device):
    more = ("--table", 2, "--out", tmp_path / "out") if name == "reproduce_paper" else (tmp_path,)
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = tool(name, *more, "--device", device)
    assert done.status == 2, f"a device that is not here ends otherwise: {done}"
    assert len(done.err.splitlines()) == 1 and f"--device is {device}" in done.err


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert find_device("auto").type == expected, "auto takes another device"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("evaluate", ("x", "--max-tokens", "-1"), "--max-tokens is -1; expected a whole number"),
        ("evaluate", ("x", "--batch-size", "0"), "--batch-size is 0"),
        ("evaluate", ("x", "--seed", "-3"), "--seed is -3"),
        ("evaluate", ("x", "--tolerance", "nan"), "--tolerance is nan"),
        ("evaluate", ("x", "--needle-depths", "0,2"), "--needle-depths is 2"),
        ("evaluate", ("x", "--needle-lengths", "64,x"), "--needle-lengths is x"),
        ("generate", ("x", "--max-tokens", "0"), "--max-tokens is 0"),
        ("generate", ("x", "--seed", "1" * 30), "--seed is 111"),
        ("generate", ("x", "--temperature", "inf"), "--temperature is inf"),
        ("scaling_report", ("--csv", "x", "--out", "y", "--grid", "1e9"), "--grid is 1e9"),
        ("scaling_report", ("--csv", "x", "--out", "y", "--targets", "nan"), "--targets is nan"),
        ("scaling_report", ("--csv", "x", "--out", "y", "--bootstrap", "-1"), "--bootstrap is -1"),
        ("scaling_report", ("--csv", "x", "--out", "y", "--bootstrap", "5"), "--bootstrap is 5"),
        (
            "scaling_report",
            ("--csv", "x", "--out", "y", "--bootstrap", "1e7"),
            "--bootstrap is 1e7",
        ),
        ("sweep", ("run", "--sweep", "x", "--out", "y", "--nodes", "-1"), "--nodes is -1"),
        ("sweep", ("plan", "--sweep", "x", "--out", "y", "--gflops", "0"), "--gflops is 0"),
        ("launch", ("--config", "x", "--minutes", "1e3"), "--minutes is 1e3"),
        ("reproduce_paper", ("--table", "4", "--out", "y"), "--table is 4"),
        ("reproduce_paper", ("--table", "2", "--out", "y", "--lengths", "0"), "--lengths is 0"),
        ("pretrain", ("--config", "x", "--stopped-status", "256"), "--stopped-status is 256"),
        ("prepare_data", ("--train", "x", "--out", "y", "--workers", "0"), "--workers is 0"),
        ("plan", ("--config", "x", "--gpu", "h100", "--nodes", "0"), "--nodes is 0"),
    ],
)
def test_a_number_out_of_range_is_refused_in_one_sentence(tool, name, arguments, said):
    done = tool(name, *arguments)
    assert done.status == 2, f"a number out of range is taken: {done}"
    assert len(done.err.splitlines()) == 1 and said in done.err, f"not named: {done.err}"
