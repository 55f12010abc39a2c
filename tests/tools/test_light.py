"""Tools that compute no model begin without torch, whose import takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
print(sorted({"torch", "matplotlib", "jinja2", "deepspeed"} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", ["scaling_report"])
def test_help_imports_nothing_heavy(name) -> None:
    """The tool has a process of its own, since this one has imported torch."""
    command = [sys.executable, "-c", LIST, ROOT / "tools" / f"{name}.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
