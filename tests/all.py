"""All tests, in three processes side by side, since most of them wait for others most of the time.

``python tests/all.py [OPTIONS OF PYTEST]``, options alone. What the first one says is seen at once,
the others' words come last, each in one piece.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parent
BESIDE = (["slurm"], ["parallel", "train", "checkpoint"])
"""Folders that run beside all others: a Slurm of several nodes; jobs of several ranks."""


def main(options: list[str]) -> int:
    """The exit status of the one that ended worst."""
    apart = [f"--ignore={TESTS / name}" for names in BESIDE for name in names]
    beside = [_begin([*options, *(str(TESTS / n) for n in names)]) for names in BESIDE]
    try:
        statuses = [subprocess.run(_pytest([*options, *apart]), cwd=TESTS.parent).returncode]
        statuses += [process.wait() for process, _ in beside]
    finally:  # a Ctrl-C reaches all of them; none outlives this one
        for process, _ in beside:
            process.terminate()
            process.wait()
    for names, (_, said) in zip(BESIDE, beside, strict=True):
        said.seek(0)
        print(f"\ntests/{', '.join(names)}:\n{said.read()}", flush=True)
    return max(statuses)


def _begin(options: list[str]) -> tuple[subprocess.Popen, IO[str]]:
    """Tests under way, and what they say."""
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(_pytest(options), cwd=TESTS.parent, stdout=said, stderr=said)
    return process, said


def _pytest(options: list[str]) -> list[str]:
    return [sys.executable, "-m", "pytest", *options]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
