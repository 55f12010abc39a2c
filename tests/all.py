"""All tests: those on a Slurm of several nodes beside the others, since they mostly wait.

``python tests/all.py [OPTIONS OF PYTEST]``, options alone: what the Slurm's tests say comes last,
in one piece.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
SLURM = TESTS / "slurm"


def main(options: list[str]) -> int:
    """The exit status of whichever of both ended worse."""
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+") as said:
        beside = subprocess.Popen([*pytest, str(SLURM)], cwd=TESTS.parent, stdout=said, stderr=said)
        try:
            others = subprocess.run([*pytest, f"--ignore={SLURM}"], cwd=TESTS.parent).returncode
            status = beside.wait()
        finally:  # a Ctrl-C reaches both; so that none outlives the other
            beside.terminate()
            beside.wait()
        said.seek(0)
        print(f"\nOn a Slurm of several nodes:\n{said.read()}", flush=True)
    return max(others, status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
