"""Following a job's log, and cancelling a job."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from gam_scale.errors import UserError
from gam_scale.files import open_regular
from gam_scale.launch.status import ask_slurm, launch_note, slurm_states, status
from gam_scale.run.lock import holder

POLL_S = 0.5
"""Seconds between looks at the log."""
ASK_S = 15.0
"""Seconds between looks at Slurm's queue and at the run's lock, where there is a Slurm."""
OVER = ("finished", "died", "stopped")


def log_of(run: Path) -> Path:
    """Return the log of rank 0 of the run's newest job.

    Raises:
        UserError: no job has written a log yet.
    """
    candidates = [*run.glob("jobs/*/rank0.log"), *run.glob("logs/rank0.log")]
    if (log := launch_note(run).logs) and Path(log).exists():
        candidates = [Path(log)]  # submitit's own log holds the console of rank 0
    if not candidates:
        raise UserError(f"{run} has no log yet; expected a run that has started")
    return max(candidates, key=lambda path: path.stat().st_mtime)


def follow(run: Path, out: TextIO = sys.stdout) -> str:
    """Print the log of a run as it grows, until the run is over; return its last state.

    If the job is requeued, the log of its next start follows.

    Raises:
        UserError: nobody has started the run, and no job of tools/launch.py is about to.
    """
    position, path, state, next_look = 0, None, "", 0.0
    while True:
        if time.monotonic() >= next_look:  # before the log, so that its last lines are read
            states, on_slurm = slurm_states(), launch_note(run).cluster == "slurm"
            state = status(run, states).state
            every = POLL_S if states is None and not on_slurm else ASK_S
            next_look = time.monotonic() + every
        unknown = states is None and on_slurm  # no controller answers
        if state == "never started" and not unknown:
            raise UserError(
                f"{run} has no run, and no job of tools/launch.py that is queued or running is to "
                "make one; expected the directory of a run, as --status lists them (a job of "
                "sbatch's has one once it has begun)"
            )
        try:
            newest = log_of(run)
        except UserError:
            newest = None
        if newest != path:
            path, position = newest, 0
        if path is not None:
            with open_regular(path) as file:
                file.seek(position)
                out.write(file.read().decode(errors="replace"))
                position = file.tell()
            out.flush()
        if state in OVER:
            return state
        time.sleep(POLL_S)


def cancel(run: Path) -> str:
    """Ask the run's job to save and end; return what was done, in a sentence.

    Raises:
        UserError: no job of the run is running or queued, or none that can be reached from here.
    """
    row, note = status(run, slurm_states()), launch_note(run)
    if row.state in OVER or row.state == "never started":
        raise UserError(f"{run} is {row.state}; expected a run that is running or queued")
    # submitit's controller passes SIGTERM on to every rank.
    if note.process and note.process.send(signal.SIGTERM):
        return f"{run}: process {note.process.pid} was asked to save and end"
    if row.slurm_job:
        return _cancel_on_slurm(run, row.slurm_job)
    by = holder(run) or {}
    raise UserError(
        f"{run} is {row.state}, but not by a process that tools/launch.py started on this host; "
        f"expected its own command to be ended, process {by.get('pid', '?')} on "
        f"{by.get('host', '?')}"
    )


def _cancel_on_slurm(run: Path, job: str) -> str:
    job = _exact(job)
    done = subprocess.run(["scancel", job], text=True, capture_output=True)
    if done.returncode:
        raise UserError(f"{run}: scancel {job} failed ({done.stderr.strip()})")
    return f"{run}: job {job} was cancelled; it saves and ends"


def _exact(job: str) -> str:
    """Return an id that means this job alone: one task of an array has the array's own number."""
    listed = ask_slurm("squeue", "-h", "-r", "-j", job, "-o", "%A %i %T") or ""
    tasks = [line.split() for line in listed.splitlines()]
    begun = [shown for number, shown, state in tasks if number == job and state != "PENDING"]
    return begun[0] if begun else job
