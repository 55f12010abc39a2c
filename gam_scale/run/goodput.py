"""Goodput: what share of a run's wall time went into steps that count, over all of its starts.

A step that a crash took back was trained twice and counts once. The first step of each start, which
compiles, counts as part of the startup. Goodput comes from two files of the run directory:
``starts.json``, in which rank 0 notes each start, and ``metrics.jsonl``, whose lines have the time
of day and the seconds of all steps so far.
"""

import math
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from gam_scale.files import write_json
from gam_scale.run.directory import RunDir
from gam_scale.run.metrics_file import Line, read_metrics
from gam_scale.run.restarts import restart_number
from gam_scale.strict import read_record

_BEGAN: list[float] = []
"""When each run began that this process has trained, one after the other, as seconds since 1970."""


@dataclass
class Start:
    """One start of a run, as starts.json holds it; times are in seconds since 1970."""

    began: float
    """When rank 0's process was created, or when it turned to this run after another one."""
    step: int
    """Step of the checkpoint that it started from."""
    ranks: int
    job: str
    """The scheduler's id of the job; empty without a scheduler."""
    again: bool
    """Whether a scheduler restarted the run; if not, a person started it."""
    last_step: int = 0
    """The last step that was logged before this start."""
    last_time: float | None = None
    """When ``last_step`` was logged; None: nothing had been logged."""
    trained: float | None = None
    """When this start's first step was done; None: it did not get that far."""


@dataclass
class _Starts:
    """The content of starts.json."""

    starts: list[Start]


@dataclass(frozen=True)
class Resume:
    """How a run went on after an interruption."""

    seconds: float
    """Seconds from the last logged step to the first trained one after it: to notice, to wait in
    the queue, to start and to load. If a person started the run again: from that start on."""
    steps_again: int
    """Steps logged before and trained again, since the checkpoint was older."""
    job: str
    ranks: int


@dataclass(frozen=True)
class Goodput:
    """Where a run's time went, up to its last logged step."""

    step_seconds: float
    """Seconds of the optimizer steps that count, without data waits and each start's first step."""
    wall_seconds: float
    """Seconds since the first start. The time that the run lay still until a person started it
    again does not count; the time that a scheduler took to restart it does."""
    starts: int
    resumes: list[Resume] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Useful step time over wall time."""
        return self.step_seconds / self.wall_seconds

    @property
    def resume_seconds(self) -> float | None:
        """The median time to resume; None where nothing was interrupted."""
        return median(each.seconds for each in self.resumes) if self.resumes else None

    def figures(self) -> dict[str, Any]:
        """Return the figures for summary.json."""
        return {
            "goodput": self.share,
            "step_seconds": self.step_seconds,
            "wall_seconds": self.wall_seconds,
            "starts": self.starts,
            "resume_seconds": [each.seconds for each in self.resumes],
            "steps_again": sum(each.steps_again for each in self.resumes),
        }


def note_start(run: RunDir, step: int, ranks: int) -> None:
    """Note a start from ``step``; to call before metrics.jsonl loses the lines past that step."""
    starts = read_starts(run.starts)
    last = (read_metrics(run.metrics) or [{}])[-1]
    now = Start(
        began=_began(),
        step=step,
        ranks=ranks,
        job=os.environ.get("SLURM_JOB_ID", ""),
        again=restart_number() > 0,
        last_step=last.get("step", 0),
        last_time=last.get("time"),
    )
    if starts and starts[-1].trained is None:  # that start dropped lines and wrote none itself
        now.last_step, now.last_time = starts[-1].last_step, starts[-1].last_time
    _write(run.starts, [*starts, now])


def note_first_step(run: RunDir) -> None:
    """Note when the last start has trained its first step; further calls do nothing."""
    starts = read_starts(run.starts)
    if starts and starts[-1].trained is None:
        run.check_lock()
        starts[-1].trained = time.time()
        _write(run.starts, starts)


def read_starts(path: Path) -> list[Start]:
    """Return the starts in the file ``path``; none if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    return read_record(_Starts, path).starts if path.exists() else []


def goodput(run: RunDir) -> Goodput | None:
    """Return a run's goodput so far; None before the first logged step or with a clock set back."""
    starts, lines = read_starts(run.starts), read_metrics(run.metrics)
    if not starts or not lines or None in map(lines[-1].get, ("time", "step_seconds")):
        return None
    wall, resumes = lines[-1]["time"] - starts[0].began, []
    since: float | None = None  # start of the interruption that has not ended yet
    for before, start in zip(starts, starts[1:], strict=False):
        left = max(before.began, start.last_time or 0.0)
        if not start.again:
            wall -= max(0.0, start.began - left)
            since = start.began
        elif since is None:
            since = left
        if start.trained is not None:
            again = max(0, start.last_step - start.step)
            resumes.append(Resume(start.trained - since, again, start.job, start.ranks))
            since = None
    if wall <= 0:  # somebody set the clock back
        return None
    # A branch inherits steps of another run, which took none of the branch's own time.
    trunk = [line for line in lines if line["step"] <= starts[0].step]
    taken = [line["step_seconds"] for line in trunk if line.get("step_seconds") is not None]
    inherited = taken[-1] if taken else 0.0
    return Goodput(lines[-1]["step_seconds"] - inherited, wall, len(starts), resumes)


def clock_seconds(lines: Sequence[Line], starts: Sequence[Start]) -> float:
    """Return the seconds of training that the lines of a run have, over all its starts.

    The clock begins anew at each start, and at a rollback. So the last values before that add up,
    even those of a start so short that the clock of the next has passed it by its first line.
    """
    steps: list[int] = []
    for start in reversed(starts):  # a later start from an earlier step dropped the lines between
        if not steps or start.step < steps[0]:
            steps.insert(0, start.step)
    clock = [(each["step"], each["seconds"]) for each in lines if each.get("seconds") is not None]
    return sum(
        value
        for (step, value), (next_step, next_value) in pairwise([*clock, (math.inf, 0.0)])
        if next_value < value or bisect_left(steps, step) < bisect_left(steps, next_step)
    )


def _write(path: Path, starts: list[Start]) -> None:
    write_json(path, asdict(_Starts(starts)))


def _began() -> float:
    """Return when the run that this process now trains began; only the first pays for imports."""
    _BEGAN.append(time.time() if _BEGAN else _process_start())
    return _BEGAN[-1]


def _process_start() -> float:
    """Return when this process was created, to the second."""
    return psutil.Process().create_time()
