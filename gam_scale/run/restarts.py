"""Counts how often a scheduler has restarted a run, and ends a run that makes no progress."""

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gam_scale.environment import number
from gam_scale.errors import UserError
from gam_scale.files import read_regular, write_json
from gam_scale.strict import read_record


@dataclass
class Restarts:
    """A run's count of restarts, kept in its directory."""

    job: str = ""
    """The scheduler's id of the job that started the run last."""
    step: int = 0
    """The step of the checkpoint that this job started from."""
    total: int = 0
    """Restarts since the run began."""
    without_progress: int = 0
    """Restarts in a row that found no newer checkpoint than the start before."""
    begun_by: str = ""
    """The job, by :func:`this_job`, that began the run with ``--fresh``."""


def restart_number(env: Mapping[str, str] = os.environ) -> int:
    """Return how often the scheduler has restarted this job; 0 if a person started it."""
    by_torchrun = number(env, "TORCHELASTIC_RESTART_COUNT", 0)
    return number(env, "SLURM_RESTART_COUNT", 0) or by_torchrun


def this_job(env: Mapping[str, str] = os.environ) -> str:
    """Return an id that all restarts of one job share, and no other job has; empty if unknown.

    If Slurm has requeued the job, torchrun has begun anew under another id, so only Slurm's counts.
    """
    run = "" if number(env, "SLURM_RESTART_COUNT", 0) else env.get("TORCHELASTIC_RUN_ID", "")
    if run == "none":  # torchrun's default; its one process then starts the ranks anew
        run = f"{socket.gethostname()}:{os.getppid()}"
    return " ".join(filter(None, (env.get("SLURM_JOB_ID"), run)))


def begun_by_this_job(path: Path) -> bool:
    """Return whether, by the note in file ``path``, this job began the run before its restart.

    A job may be killed before ``--fresh`` has removed the earlier run; its restart then removes it.
    After that, its restarts go on with what the job made.
    """
    me, known = this_job(), read_restarts(path)
    return not me or me in (known.begun_by, known.begun_by.partition(" ")[0], known.job)


def note_begin(path: Path) -> None:
    """Note in file ``path`` that this job begins the run, having removed an earlier one."""
    write_json(path, asdict(Restarts(os.environ.get("SLURM_JOB_ID", ""), begun_by=this_job())))


def read_restarts(path: Path) -> Restarts:
    """Return the counts in file ``path``, zero if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    return read_record(Restarts, path) if path.exists() else Restarts()


def count_start(path: Path, step: int, most: int, logs: Path) -> Restarts:
    """Note in file ``path`` that the run starts from ``step``.

    Args:
        path: file of the counts.
        step: step of the checkpoint that the run starts from; 0: from the beginning.
        most: restarts without progress that are still allowed; 0: any number.
        logs: folder of the ranks' logs, which hold the reason of the last failure.

    Raises:
        UserError: a scheduler restarts the run over and over, and the run gets no further.
    """
    before, number = read_restarts(path), restart_number()
    job = os.environ.get("SLURM_JOB_ID", "")
    now = Restarts(job, step, before.total + (number > 0), begun_by=before.begun_by)
    if number and step <= before.step:  # a person's own start begins a new count
        now.without_progress = before.without_progress + 1
    write_json(path, asdict(now))
    if most and now.without_progress > most:
        reason = last_error(logs) or "its logs name no reason, so it was killed from outside"
        raise UserError(
            f"{most} restarts in a row ended before a checkpoint past step {step} (the last: "
            f"{reason}); expected progress between restarts, or a larger checkpoint.max_restarts"
        )
    return now


def last_error(logs: Path) -> str | None:
    """Return the newest ERROR line of all ranks' logs, without its time; None: no such line."""
    newest = ""
    for file in logs.glob("rank*.log"):
        for line in read_regular(file).decode(errors="replace").splitlines():
            if " ERROR " in line[:40]:
                newest = max(newest, line)  # lines begin with the time
    return newest.partition(" ERROR ")[2] or None
