"""The list behind `make test-fast`: every entry exists, every package is covered."""

import os
from pathlib import Path

HERE = Path(__file__).parent
ENTRIES = [
    line for line in (HERE / "fast.txt").read_text().split("\n") if line.startswith("tests/")
]
NOT_COVERED = {"slurm", "attack", "tools"}
"""Folders of tests that start jobs, attacks and whole commands: minutes, not seconds."""


def test_every_entry_is_there():
    missing = [e for e in ENTRIES if not os.path.exists(HERE.parent / e.partition("::")[0])]
    assert missing == []


def test_every_package_is_covered():
    folders = {path.name for path in HERE.iterdir() if any(path.glob("test_*.py"))}
    covered = {Path(entry).parts[1] for entry in ENTRIES}
    assert folders - covered <= NOT_COVERED
