"""Training in a process of its own that does not outlive the one that waits for it."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gam_scale.train.lock import is_held

ROOT = Path(__file__).resolve().parents[2]


def wait_until_free(run_dir: Path) -> None:
    """What a killed command was training saves before it ends; another may be at work too."""
    if is_held(run_dir):
        print("  another process is training it; waiting until that ends", flush=True)
    while is_held(run_dir):
        time.sleep(0.5)


def train_in_child(configs: Sequence[Path], log: Path) -> int:
    """Train runs one after another, resuming what is there; the exit status.

    Args:
        configs: of the runs, as :mod:`gam_scale.train.several` takes them.
        log: what the process says is added to this file.
    """
    command = [sys.executable, "-m", "gam_scale.train.several", *map(str, configs)]
    with open(log, "ab") as file:
        done = subprocess.run(
            command, env=_environment(), stdout=file, stderr=file, preexec_fn=_end_with_parent
        )
    return done.returncode


def _environment() -> dict[str, str]:
    """In which this package is found as here, wherever the command was typed."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _end_with_parent() -> None:
    """Have Linux tell this process to save and end when its parent is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
