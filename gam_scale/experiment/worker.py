"""Training in a process of its own that does not outlive the one that waits for it."""

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
"""How a process says why it ends: ours in one line, a traceback in its last one."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    reason: str
    """One line for the console."""


def wait_until_free(run_dir: Path) -> None:
    """What a killed command was training saves before it ends; another may be at work too."""
    if is_held(run_dir):
        print("  another process is training it; waiting until that ends", flush=True)
    while is_held(run_dir):
        time.sleep(0.5)


def train_in_worker(configs: Sequence[Path], log: Path) -> Ended:
    """Train runs one after another, resuming what is there.

    Args:
        configs: of the runs, as :mod:`gam_scale.train.in_turn` takes them.
        log: what the process says is added to this file.
    """
    command = [sys.executable, "-m", "gam_scale.train.in_turn", *map(str, configs)]
    with append_regular(log) as file:
        before = file.tell()
        child = subprocess.Popen(
            command, env=_environment(), stdout=file, stderr=file, preexec_fn=_end_with_parent
        )
        try:
            status = child.wait()
        except KeyboardInterrupt:
            print("  what was training saves and ends; Ctrl-C once more does not wait", flush=True)
            child.terminate()
            child.wait()
            raise
    with open_regular(log) as file:
        file.seek(before)
        said = file.read().decode(errors="replace")
    return Ended(status, _reason(status, said))


def _reason(status: int, said: str) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = REASON.findall(said) or said.split("\n")
    return next(
        (one_line(line, 400) for line in reversed(lines) if line.strip()), "it said nothing"
    )


def _environment() -> dict[str, str]:
    """In which this package is found as here, wherever the command was typed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _end_with_parent() -> None:
    """Have Linux tell this process to save and end when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
