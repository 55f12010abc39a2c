"""Train in a child process that does not outlive the process that waits for it."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gam_scale.errors import one_line
from gam_scale.files import append_regular, open_regular
from gam_scale.run.lock import is_held

ROOT = Path(__file__).resolve().parents[2]
REASON = re.compile(r"^(?:\[rank\d+\]: ?)*((?:error|[\w.]*(?:Error|Exception)): .+)$", re.MULTILINE)
"""The line that says why a process ended: this package's error line, or a traceback's last."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    reason: str
    """One line for the console."""


def wait_until_free(run_dir: Path) -> None:
    """Wait until no process trains in ``run_dir``.

    The process of a killed command saves before it ends; or another command may be training.
    """
    if is_held(run_dir):
        print("  another process is training it; waiting until that ends", flush=True)
    while is_held(run_dir):
        time.sleep(0.5)


class Worker:
    """A process that trains runs one after another, resuming what is there.

    Args:
        trainer: module that is run with the configs, such as :mod:`gam_scale.train.in_turn`.
        configs: config files of the runs, as the trainer takes them.
        log: file to which the output of the process is added.
        threads: threads of its matmuls; 0: as many as it finds right.
    """

    def __init__(self, trainer: str, configs: Sequence[Path], log: Path, threads: int = 0) -> None:
        self.log = log
        command = [sys.executable, "-m", trainer, *map(str, configs)]
        with append_regular(log) as file:
            self._before = file.tell()
            self._child = subprocess.Popen(
                command,
                env=_environment(threads),
                stdout=file,
                stderr=file,
                preexec_fn=_end_with_parent,
            )

    def ended(self) -> Ended | None:
        """Return how the process ended; None while it is at work."""
        status = self._child.poll()
        if status is None:
            return None
        with open_regular(self.log) as file:
            file.seek(self._before)
            said = file.read().decode(errors="replace")
        return Ended(status, reason(status, said))

    def stop(self) -> None:
        """Tell the process to save and end, and wait until it has ended."""
        self._child.terminate()
        self._child.wait()


def reason(status: int, said: str) -> str:
    """Return in one line, from its output, why a process ended; ``status`` < 0: by a signal."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = REASON.findall(said) or said.split("\n")
    return next(
        (one_line(line, 400) for line in reversed(lines) if line.strip()), "it said nothing"
    )


def _environment(threads: int) -> dict[str, str]:
    """Return an environment in which this package is found from any working directory."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | own


def _end_with_parent() -> None:
    """Have Linux tell this process to save and end when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
