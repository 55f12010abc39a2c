"""What became of each run, from its directory and, where there is Slurm, from squeue.

No accounting database is asked: a job that squeue no longer knows and that holds no lock has
ended, and whether it finished stands in its run directory.
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
    """finished, running, queued, a state of Slurm's such as completing, stopped or died."""
    job: str
    slurm_job: str
    """Empty where its job is not Slurm's."""
    step: int
    steps: int
    loss: float | None
    tokens_per_s: float | None
    restarts: int
    checkpoint: int | None
    """Step of the newest checkpoint."""
    goodput: Goodput | None
    slowest: tuple[str, float] | None
    """Host of the slowest of several ranks, and how many times as long as the median it takes."""


@dataclass(frozen=True)
class LaunchNote:
    """What tools/launch.py noted of the job that it submitted for a run."""

    job: str = ""
    cluster: str = ""
    logs: str = ""
    """File that its rank 0 writes to."""
    process: Process | None = None
    """The process that started the ranks of a local job."""
    pid: int = 0
    """The number of that process, in notes of older versions: a later process may have it now."""


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
    """The run directories among ``folders`` and in them, submitted ones included.

    Raises:
        UserError: there is none.
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
    except PermissionError:  # a colleague's folder: it may be one, and its row says so
        return True


def ask_slurm(*command: str) -> str | None:
    """What a Slurm client prints; None where there is none, or where no controller answers."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, text=True, capture_output=True, timeout=SLURM_PATIENCE_S)
    except subprocess.TimeoutExpired:  # clients try again for minutes
        return None
    return None if done.returncode else done.stdout


def slurm_states() -> dict[str, str] | None:
    """State by job id of every job that squeue still knows; None without Slurm."""
    done = ask_slurm("squeue", "-h", "-t", "all", "-r", "-o", "%i %A %T")
    if done is None:
        return None
    states: dict[str, str] = {}
    for line in done.splitlines():
        shown, job, state = line.split()
        states |= {shown: state, job: state}
    return states


def status(path: Path, states: dict[str, str] | None) -> RunStatus:
    """The row of one run; ``states`` as :func:`slurm_states` gives them."""
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
    """How many steps a run is to have, by its config.json; 0 where there is none."""
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
    """What tools/launch.py noted when it submitted the run; empty where it did not."""
    note = path / "jobs" / "launched.json"
    return read_record(LaunchNote, note) if note.is_file() else LaunchNote()


def _slurm_job(run: RunDir, note: LaunchNote, restarted: str, states: dict[str, str] | None) -> str:
    """The Slurm job that trains the run, is to or did; empty where it is none of Slurm's."""
    written = str((holder(run.path) or {}).get("job") or "")
    if is_held(run.path):
        return written
    # A script of slurm/ keeps what it begins with in a folder of its job's number.
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
    # A lock that its dead holder never gave back: it was killed.
    if holder(run.path) is not None or slurm in ("FAILED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY"):
        return "died"
    if run.config.exists():
        return "stopped"
    return "died" if note.process else "never started"


def look(paths: Iterable[Path], states: dict[str, str] | None) -> tuple[list[list[str]], list[str]]:
    """The status table of runs, of which some may be damaged or somebody else's.

    Returns:
        Its cells, and for each run that cannot be read a sentence that says why.
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
    """The cells of the status table, below :data:`COLUMNS`."""
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
