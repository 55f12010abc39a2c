"""The status of runs, from their directories and, where there is Slurm, from squeue.

No accounting database is asked: a job that squeue no longer knows and that holds no lock has
ended, and its run directory says whether it finished.
"""

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.process import Process
from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import Goodput, goodput
from gam_scale.run.lock import holder, is_held
from gam_scale.run.metrics_file import read_metrics
from gam_scale.run.restarts import read_restarts
from gam_scale.strict import read_json, read_record, shown
from gam_scale.train.health import read_ranks, slowdown


@dataclass(frozen=True)
class RunStatus:
    """One row of the status table."""

    run: str
    state: str
    """finished, running, queued, starting, completing, stopped, died or never started."""
    job: str
    slurm_job: str
    """Slurm's id of the job; empty if the job is not Slurm's."""
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    restarts: int
    checkpoint: int | None
    """Step of the newest checkpoint."""
    goodput: Goodput | None
    slowest: tuple[str, float] | None
    """Host of the slowest of several ranks, and its probe time over the median rank's."""


@dataclass(frozen=True)
class LaunchNote:
    """What tools/launch.py noted about the job that it submitted for a run."""

    job: str = ""
    cluster: str = ""
    logs: str = ""
    """File that the job's rank 0 writes to."""
    process: Process | None = None
    """The process that started the ranks of a local job."""
    pid: int = 0
    """Id of that process, in notes of older versions; another process may have the id by now."""


SLURM_PATIENCE_S = 30.0
DEPTH = 3
"""Levels of folders that are searched for runs, from the one that was named."""
COLUMNS = (
    "run",
    "state",
    "job",
    "step",
    "loss",
    "tokens/s",
    "restarts",
    "checkpoint",
    "goodput",
    "to resume",
    "slowest",
)


def find_runs(folders: Iterable[str | Path]) -> list[Path]:
    """Return the run directories among ``folders`` and below them, submitted runs included.

    Raises:
        UserError: there is no run directory.
    """
    runs: list[Path] = []
    for folder in map(Path, folders):
        level = [folder]
        for _ in range(DEPTH):
            runs_here = [path for path in level if _is_run(path)]
            runs += runs_here
            others = [path for path in level if path not in runs_here]
            level = [below for path in others for below in sorted(path.glob("*"))]
    if not runs:
        names = ", ".join(map(str, folders)) or "nothing"
        raise UserError(f"{names}: no run here; expected run directories or a folder of them")
    return list(dict.fromkeys(runs))


def _is_run(path: Path) -> bool:
    # A checkpoint holds a config.json as well, but no logs beside it.
    try:
        submitted = (path / "jobs" / "launched.json").is_file()
        return submitted or ((path / "config.json").is_file() and (path / "logs").is_dir())
    except PermissionError:  # a colleague's folder may be a run: its row says it is unreadable
        return True


def ask_slurm(*command: str) -> str | None:
    """Return what a Slurm client prints; None without the client, or if no controller answers."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=SLURM_PATIENCE_S)
    except subprocess.TimeoutExpired:  # without a timeout, clients retry for minutes
        return None
    return None if done.returncode else done.stdout


def slurm_states() -> dict[str, str] | None:
    """Return the state of every job that squeue still knows, by job id; None without Slurm."""
    done = ask_slurm("squeue", "-h", "-t", "all", "-r", "-o", "%i %A %T")
    if done is None:
        return None
    states: dict[str, str] = {}
    for line in done.splitlines():
        shown, job, state = line.split()
        states |= {shown: state, job: state}
    return states


def status(path: Path, states: dict[str, str] | None) -> RunStatus:
    """Return the row of one run; ``states`` come from :func:`slurm_states`."""
    run = RunDir(path)
    lines = read_metrics(run.metrics)
    last = lines[-1] if lines else {}
    kept = run.checkpoints.steps()
    steps = _steps(run.config)
    restarts = read_restarts(run.restarts)
    note = launch_note(path)
    job = _slurm_job(run, note, restarts.job, states)
    return RunStatus(
        run=str(path),
        state=_state(run, note, job, bool(steps) and last.get("step") == steps, states),
        job=job or note.job,
        slurm_job=job,
        step=last.get("step", 0),
        steps=steps,
        loss=last.get("loss"),
        tokens_per_s=last.get("tokens_per_s"),
        restarts=restarts.total,
        checkpoint=kept[-1] if kept else None,
        goodput=goodput(run),
        slowest=_slowest(run),
    )


def _steps(path: Path) -> int:
    """Return how many steps a run is to have, by its config.json; 0 if there is no file."""
    config: Any = read_json(path) if path.exists() else {"train": {"steps": 0}}
    try:
        steps = config["train"]["steps"]
    except (TypeError, KeyError, IndexError):
        steps = None
    if type(steps) is not int:
        raise UserError(f"{path}: train.steps is {shown(steps)}; expected a whole number")
    return steps


def _slowest(run: RunDir) -> tuple[str, float] | None:
    ranks = read_ranks(run.ranks)
    if len(ranks) < 2:
        return None
    slowest = max(ranks, key=lambda each: each.probe_s)
    return slowest.host, slowdown(ranks)


def launch_note(path: Path) -> LaunchNote:
    """Return what tools/launch.py noted when it submitted the run; empty if it did not."""
    note = path / "jobs" / "launched.json"
    return read_record(LaunchNote, note) if note.is_file() else LaunchNote()


def _slurm_job(run: RunDir, note: LaunchNote, restarted: str, states: dict[str, str] | None) -> str:
    """Return the Slurm job that trains, is to train or trained the run; empty if none did."""
    written = str((holder(run.path) or {}).get("job") or "")
    if is_held(run.path):
        return written
    # A script of slurm/ keeps its code and log in a folder named by its job's number.
    begun = [folder for folder in run.path.glob("jobs/*/") if folder.name.isdigit()]
    newest = max(begun, key=lambda folder: folder.stat().st_mtime, default=Path(""))
    launched = note.job if note.cluster == "slurm" else ""
    noted = [job for job in (written, launched, newest.name, restarted) if job]
    known = [job for job in noted if job in (states or {})]
    return next(iter([*known, *noted]), "")


def _state(
    run: RunDir, note: LaunchNote, job: str, at_the_end: bool, states: dict[str, str] | None
) -> str:
    if at_the_end and run.summary.exists():
        return "finished"
    if is_held(run.path):
        return "running"
    slurm = (states or {}).get(job, "")
    if slurm in ("PENDING", "REQUEUED"):
        return "queued"
    if slurm in ("RUNNING", "CONFIGURING"):
        return "running" if holder(run.path) else "starting"
    if slurm == "COMPLETING":
        return "completing"
    if note.process and note.process.is_alive():
        return "starting"
    # A lock that its dead holder never released: the holder was killed.
    if holder(run.path) is not None or slurm in ("FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"):
        return "died"
    if run.config.exists():
        return "stopped"
    return "died" if note.process else "never started"


def status_table(
    paths: Iterable[Path], states: dict[str, str] | None
) -> tuple[list[list[str]], list[str]]:
    """Return the status table of runs, of which some may be damaged or somebody else's.

    Returns:
        The table's cells, and for each run that cannot be read a sentence that says why.
    """
    cells: list[list[str]] = []
    problems = []
    for path in paths:
        try:
            cells += table([status(path, states)])
        except (UserError, OSError) as error:
            cells.append([str(path), "unreadable", *["-"] * (len(COLUMNS) - 2)])
            reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
            problems.append(f"{reason}")
    return cells, problems


def table(rows: Iterable[RunStatus]) -> list[list[str]]:
    """Return the cells of the status table, below :data:`COLUMNS`."""
    return [
        [
            row.run,
            row.state,
            row.job or "-",
            f"{row.step:,}/{row.steps:,}" if row.steps else "-",
            f"{row.loss:.3f}" if row.loss is not None else "-",
            f"{row.tokens_per_s:,.0f}" if row.tokens_per_s else "-",
            str(row.restarts),
            f"step {row.checkpoint:,}" if row.checkpoint is not None else "-",
            f"{row.goodput.share:.0%}" if row.goodput else "-",
            f"{seconds:.0f} s"
            if row.goodput and (seconds := row.goodput.resume_seconds) is not None
            else "-",
            f"{row.slowest[0]} {row.slowest[1]:.1f}x" if row.slowest else "-",
        ]
        for row in rows
    ]
