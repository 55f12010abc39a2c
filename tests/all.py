"""Run all tests in several processes side by side, since many tests wait part of the time.

Usage: ``python tests/all.py [PYTEST OPTIONS]``, with options only, no paths. A process that has
finished a test file takes the next one (see tests/turns.py). The first process prints as it runs;
the output of each other process follows at the end, in one piece.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parent
PROCESSES = 3
"""One that begins with the Slurm tests and mostly waits, and one for each of two cores."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""Keeps a process from using all cores for tiny tensors, or starting a pool to compile."""


def main(options: list[str]) -> int:
    """Run the tests; return 0 if every process exits with 0, else at least 1, also for a signal."""
    with tempfile.NamedTemporaryFile() as turns:
        command = [sys.executable, "-m", "pytest", f"--turns={turns.name}", *options]
        env = os.environ | ONE_THREAD
        others = [_begin(command, env) for _ in range(PROCESSES - 1)]
        try:
            statuses = [subprocess.run(command, cwd=TESTS.parent, env=env).returncode]
            statuses += [process.wait() for process, _ in others]
        finally:  # Ctrl-C reaches all processes; none may outlive this one
            for process, _ in others:
                process.terminate()
                process.wait()
    for number, (_, said) in enumerate(others, 2):
        said.seek(0)
        print(f"\nprocess {number} of {PROCESSES}:\n{said.read()}", flush=True)
    return 0 if not any(statuses) else max(1, *statuses)


def _begin(command: list[str], env: dict[str, str]) -> tuple[subprocess.Popen, IO[str]]:
    """Start a test process; return it and the file that receives its output."""
    said = tempfile.TemporaryFile("w+", errors="backslashreplace")  # noqa: SIM115
    process = subprocess.Popen(command, cwd=TESTS.parent, env=env, stdout=said, stderr=said)
    return process, said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
