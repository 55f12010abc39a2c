"""All tests, in a few processes side by side, since many of them wait for others part of the time.

``python tests/all.py [OPTIONS OF PYTEST]``, options alone. Each process takes the next file when it
is done with one (tests/turns.py). What the first one says is seen at once, the others' words come
last, each in one piece.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parent
PROCESSES = 3
"""One for Slurm at first, which waits most of the time, and one for each of two cores."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""Else each would want all cores for its tiny tensors, and those that compile a pool of helpers."""


def main(options: list[str]) -> int:
    """The exit status: 0 where every process ended well, so not one that a signal ended."""
    with tempfile.NamedTemporaryFile() as turns:
        command = [sys.executable, "-m", "pytest", f"--turns={turns.name}", *options]
        env = os.environ | ONE_THREAD
        others = [_begin(command, env) for _ in range(PROCESSES - 1)]
        try:
            statuses = [subprocess.run(command, cwd=TESTS.parent, env=env).returncode]
            statuses += [process.wait() for process, _ in others]
        finally:  # a Ctrl-C reaches all of them; none outlives this one
            for process, _ in others:
                process.terminate()
                process.wait()
    for number, (_, said) in enumerate(others, 2):
        said.seek(0)
        print(f"\nprocess {number} of {PROCESSES}:\n{said.read()}", flush=True)
    return 0 if not any(statuses) else max(1, *statuses)


def _begin(command: list[str], env: dict[str, str]) -> tuple[subprocess.Popen, IO[str]]:
    """Tests under way, and what they say."""
    said = tempfile.TemporaryFile("w+", errors="backslashreplace")  # noqa: SIM115
    process = subprocess.Popen(command, cwd=TESTS.parent, env=env, stdout=said, stderr=said)
    return process, said


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
