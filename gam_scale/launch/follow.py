"""Following a job's log, and cancelling a job."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from gam_scale.errors import UserError
from gam_scale.launch.status import launch_note, slurm_states, status

POLL_S = 0.5
OVER = ("finished", "died", "stopped")


def log_of(run: Path) -> Path:
    """The log of rank 0 of the run's newest job.

    Raises:
        UserError: no job has written one yet.
    """
    candidates = [*run.glob("jobs/*/rank0.log"), *run.glob("logs/rank0.log")]
    if note := launch_note(run):
        # submitit's own log holds the console of rank 0.
        candidates = [path for path in [Path(note["logs"])] if path.exists()] or candidates
    if not candidates:
        raise UserError(f"{run} has no log yet; expected a run that has started")
    return max(candidates, key=lambda path: path.stat().st_mtime)


def follow(run: Path, out: TextIO = sys.stdout) -> str:
    """Print the log of a run as it grows, until the run is over; its last state.

    A requeued job's log is followed on into its next start.
    """
    position, path = 0, None
    while True:
        state = status(run, slurm_states()).state  # before the log: its last lines are then read
        try:
            newest = log_of(run)
        except UserError:
            newest = None
        if newest != path:
            path, position = newest, 0
        if path is not None:
            with open(path, errors="replace") as file:
                file.seek(position)
                out.write(file.read())
                position = file.tell()
            out.flush()
        if state in OVER:
            return state
        time.sleep(POLL_S)


def cancel(run: Path) -> str:
    """Ask the run's job to save and end; what was done, in a sentence.

    Raises:
        UserError: no job of it is running or queued.
    """
    row, note = status(run, slurm_states()), launch_note(run)
    if row.state in OVER or row.state == "never started":
        raise UserError(f"{run} is {row.state}; expected a run that is running or queued")
    if note.get("cluster") == "local":
        # submitit's controller passes SIGTERM on to every rank.
        os.kill(note["pid"], signal.SIGTERM)
        return f"{run}: process {note['pid']} was asked to save and end"
    done = subprocess.run(["scancel", row.job], text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"{run}: scancel {row.job} failed ({done.stderr.strip()})")
    return f"{run}: job {row.job} was cancelled; it saves and ends"
