"""The acceptance run of a GPU: no failure ends it, and on a CPU all its checks run, smaller."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import needs
import psutil
import pytest

from benchmarks import gpu_accept
from benchmarks.accept.catalogue import CHECKS, Entry
from benchmarks.accept.start import run_check
from benchmarks.accept.table import table
from gam_scale.cli import EXIT_INTERRUPTED

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "benchmarks/accept/precisions.json"


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_no_part_takes_the_others_along(tmp_path):
    entry, told = Entry("a check", "parts", 1), []
    result = run_check(3, entry, "cpu", tmp_path, time.monotonic() + 30, told.append)
    parts = result["parts"]
    found = {name: part["status"] for name, part in parts.items()}
    wrong = dict.fromkeys(("bad", "raises", "dies", "hangs"), "failed")
    assert found == {"good": "ok", **wrong, "last": "ok"} and result["status"] == "failed"
    for name, figure in (
        ("bad", "broken"),
        ("raises", "before the error"),
        ("dies", "before death"),
    ):
        assert parts[name]["figures"][0]["figure"] == figure
    assert parts["raises"]["errors"] == ["RuntimeError: no such kernel"]
    assert "SIGSEGV" in parts["dies"]["errors"][0]
    assert "ran out of time" in parts["hangs"]["errors"][0]
    page = table([result])
    assert "| 3 | bad | broken | nan |  | at most 1 MISSED |" in page
    assert "| 3 | good | speed | 2 | m/s | at least 1 |" in page
    assert "* check 3, raises: RuntimeError: no such kernel" in page


def test_what_cannot_even_be_imported_is_said(tmp_path):
    ends = time.monotonic() + 60
    result = run_check(0, Entry("a check", "no_such_module", 1), "cpu", tmp_path, ends, print)
    assert result["status"] == "failed" and "No module named" in result["error"]


def test_every_check_has_its_share_of_ten_minutes():
    assert sum(check.seconds for check in CHECKS) <= 600 and gpu_accept.MINUTES < 10


@pytest.mark.parametrize(
    "checks", [(0, 1, 5), pytest.param(tuple(range(len(CHECKS))), marks=pytest.mark.gpu_full)]
)
def test_checks_run_on_a_cpu(tmp_path, monkeypatch, capsys, checks):
    out, only = tmp_path / "out", ",".join(map(str, checks))
    typed = ["gpu_accept", "--device", "cpu", "--out", str(out), "--only", only]
    monkeypatch.setattr("sys.argv", typed)
    status = gpu_accept.main()
    results = lines_of(out)
    page = (out / "table.md").read_text()
    assert status == 0 and [r["status"] for r in results] == ["ok"] * len(checks), page
    assert page in capsys.readouterr().out


def test_some_checks_are_run_where_some_are_asked_for(tmp_path, monkeypatch):
    typed = ["gpu_accept", "--device", "cpu", "--out", str(tmp_path), "--only", "0"]
    monkeypatch.setattr("sys.argv", typed)
    assert gpu_accept.main() == 0
    assert [line["check"] for line in lines_of(tmp_path)] == [0]
    monkeypatch.setattr("sys.argv", [*typed, "--only", "11"])
    with pytest.raises(Exception, match="--only is 11; expected a whole number"):
        gpu_accept.main()


def test_a_kill_ends_what_a_check_has_started(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_accept", "--device", "cpu"]
    command += ["--only", "7", "--out", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert any("prepare ..." in line for line in process.stdout)
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.stdout.read()
        assert started and process.wait() == EXIT_INTERRUPTED
    assert not psutil.wait_procs(started, timeout=30)[1]


def test_wheels_to_bring_are_of_the_versions_that_are_tested():
    pins = (ROOT / "constraints.txt").read_text() + (ROOT / "setup.cfg").read_text()
    pinned = dict(re.findall(r"^ *([\w.-]+)==(\S+)", pins, re.M))
    for line in (ROOT / "benchmarks/accept/wheels.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name and not name.startswith("#"):
            assert name in pinned or version, f"{name} has no version"
            assert not version or pinned.get(name, version) == version, name


@needs.fake_cuda
def test_precisions_to_compare_with_are_those_of_the_code(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accept.fake_precisions", tmp_path / "now.json"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    now, kept = (json.loads(f.read_text()) for f in (tmp_path / "now.json", EXPECTED))
    if now["torch"] != kept["torch"]:
        pytest.skip(f"they are of torch {kept['torch']}")
    assert now == kept, "remake them: python -m benchmarks.accept.fake_precisions"
