"""Run the tasks of a stage side by side, as a Slurm array or as processes of this machine."""

import os
import re
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gam_scale.errors import EndedByOthers, MistakeElsewhere
from gam_scale.experiment.worker import Worker, reason
from gam_scale.files import open_regular, write_json
from gam_scale.launch.status import ask_slurm, slurm_states
from gam_scale.launch.submit import SIGNAL_DELAY_S, site_options
from gam_scale.launch.words import shell_lines
from gam_scale.preparation.folder import Folder
from gam_scale.preparation.task import SlurmTask, Task
from gam_scale.strict import read_json

ENDED = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("BOOT_FAIL", "DEADLINE", "PREEMPTED"),
)
"""Slurm's states of a job that has ended."""
STARTS = 1000
"""How often a task whose time is up is started again, to do what it had no time for."""
LOG_BYTES = 1 << 16


@dataclass(frozen=True)
class Size:
    """The number of tasks, the processes of each task, and what Slurm is asked for."""

    tasks: int
    processes: int
    partition: str = ""
    minutes: int = 1440


@dataclass(frozen=True)
class Failure:
    """A task that ended before it had done all of its items."""

    status: str
    reason: str
    log: Path


class Array(ABC):
    """The tasks of a stage, once they are started."""

    poll_s: float

    @abstractmethod
    def at_work(self) -> int:
        """Return the number of tasks that run or are still to run."""

    @abstractmethod
    def failures(self) -> list[Failure]:
        """Return the tasks that failed."""

    @abstractmethod
    def stop(self) -> None:
        """End all tasks."""


class Local(Array):
    """Tasks as processes of this machine, which end with this process."""

    poll_s = 0.2

    def __init__(self, tasks: Sequence[Task], jobs: Path) -> None:
        self._workers = [
            Worker(
                "gam_scale.preparation.task",
                [task.write(jobs / f"{task.stage}-{number}.json")],
                jobs / f"{task.stage}-{number}.log",
            )
            for number, task in enumerate(tasks)
        ]

    def at_work(self) -> int:
        """Return the number of processes that run."""
        return sum(worker.ended() is None for worker in self._workers)

    def failures(self) -> list[Failure]:
        """Return the processes that ended with a status other than 0."""
        ends = [(worker, worker.ended()) for worker in self._workers]
        return [
            Failure(str(end.status), end.reason, worker.log)
            for worker, end in ends
            if end is not None and end.status
        ]

    def stop(self) -> None:
        """End the processes; items that they had not finished are to be done again."""
        for worker in self._workers:
            worker.stop()


class OnSlurm(Array):
    """A Slurm array, which goes on without this process; ``slurm.json`` keeps its job numbers."""

    poll_s = 2.0

    def __init__(self, jobs: dict[str, str]) -> None:
        self._jobs = jobs  # log files by job number

    @classmethod
    def submit(cls, tasks: Sequence[Task], jobs: Path, size: Size) -> "OnSlurm":
        """Submit the tasks as an array and note its job numbers in the folder ``jobs``."""
        import submitit

        made = submitit.AutoExecutor(jobs, cluster="slurm", slurm_max_num_timeout=STARTS)
        made.update_parameters(**parameters(tasks[0].stage, size))
        stamp = time.strftime("%Y%m%d-%H%M%S")
        files = [
            str(task.write(jobs / f"{task.stage}-{stamp}-{number}.json").absolute())
            for number, task in enumerate(tasks)
        ]
        with made.batch():
            handed_in = [made.submit(SlurmTask(file)) for file in files]
        noted = {job.job_id: str(job.paths.stdout) for job in handed_in}
        write_json(jobs / "slurm.json", noted)
        return cls(noted)

    @classmethod
    def earlier(cls, jobs: Path) -> "OnSlurm | None":
        """Return the array that an earlier command submitted, if some of it runs or is to run."""
        noted = jobs / "slurm.json"
        array = cls(read_json(noted)) if noted.exists() else None
        return array if array is not None and array.at_work() else None

    @property
    def numbers(self) -> str:
        """The array's number, for the console."""
        return ", ".join(dict.fromkeys(number.partition("_")[0] for number in self._jobs))

    def at_work(self) -> int:
        """Return the number of jobs in Slurm's queue; of all jobs while Slurm does not answer."""
        states = slurm_states()
        if states is None:
            return len(self._jobs)
        return sum(states.get(number, "COMPLETED") not in ENDED for number in self._jobs)

    def failures(self) -> list[Failure]:
        """Return the jobs that failed, by Slurm or, if it has forgotten a job, by the job's log."""
        found = []
        for number, log in self._jobs.items():
            state, status = _end_of(number)
            said = _end_of_log(Path(log))
            if state in (*ENDED[1:], "") and (state or re.search("^error: ", said, re.MULTILINE)):
                code, by_signal = status
                why = reason(-by_signal if by_signal else _status_of_srun_code(code), said)
                if state not in ("FAILED", ""):
                    why = f"Slurm says {state}; {why}"
                found.append(Failure(str(code), why, Path(log)))
        return found

    def stop(self) -> None:
        """Cancel the jobs."""
        ask_slurm("scancel", *self._jobs)

    def wait(self) -> None:
        """Wait until no job is at work, or no Slurm answers here."""
        while slurm_states() is not None and self.at_work():
            time.sleep(self.poll_s)


def parameters(stage: str, size: Size) -> dict[str, object]:
    """Return submitit's parameters of an array; site settings come from the environment."""
    setup = shell_lines(os.environ.get("GAM_MODULES", ""), "GAM_MODULES")
    setup.append("export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK")
    return {
        "name": f"prepare-{stage}",
        "nodes": 1,
        "tasks_per_node": 1,
        "timeout_min": size.minutes,
        "cpus_per_task": size.processes,
        "stderr_to_stdout": True,
        "slurm_signal_delay_s": min(SIGNAL_DELAY_S // 5, size.minutes * 60 // 2),
        "slurm_setup": setup,
        "slurm_additional_parameters": site_options(size.partition),
    }


def share_out(folder: Folder, stage: str, weights: dict[str, int], size: Size) -> list[Task]:
    """Share items out to tasks of about equal total weight."""
    count = min(size.tasks, len(weights))
    loads = [0] * count
    items: list[list[str]] = [[] for _ in range(count)]
    for item in sorted(weights, key=lambda each: (-weights[each], each)):
        lightest = loads.index(min(loads))
        loads[lightest] += max(1, weights[item])
        items[lightest].append(item)
    return [Task(str(folder.path), stage, sorted(own), size.processes) for own in items]


def follow(array: Array, look: Callable[[], None]) -> list[Failure]:
    """Wait until no task is at work, calling ``look`` now and then; return those that failed.

    Ctrl-C, like any exception, ends the tasks first.
    """
    try:
        while array.at_work():
            look()
            time.sleep(array.poll_s)
    except BaseException:
        array.stop()
        raise
    look()
    return array.failures()


def failure_error(what: str, left: int, failures: Sequence[Failure]) -> EndedByOthers:
    """Print which tasks failed; return the error to raise."""
    for failure in failures:
        print(
            f"a task of {what} failed with status {failure.status}: {failure.reason}; its log is "
            f"{failure.log}",
            file=sys.stderr,
        )
    mendable = bool(failures) and all(failure.status == "2" for failure in failures)
    return (MistakeElsewhere if mendable else EndedByOthers)(
        f"{what}: {left} items are not done; what is done stays, and the same command does the rest"
    )


def _end_of(number: str) -> tuple[str, tuple[int, int]]:
    """Return a job's state and its (status, signal); an empty state if Slurm has forgotten it."""
    said = ask_slurm("scontrol", "-o", "show", "job", number) or ""
    state, code = re.search(r"\bJobState=(\w+)", said), re.search(r"\bExitCode=(\d+):(\d+)", said)
    status = (int(code[1]), int(code[2])) if code else (1, 0)
    return state[1] if state else "", status


def _status_of_srun_code(code: int) -> int:
    """Return a task's status from srun's code: -N for 128 + N, by which srun means signal N."""
    return 128 - code if code - 128 in set(signal.Signals) else code


def _end_of_log(path: Path) -> str:
    if not path.exists():
        return ""
    with open_regular(path) as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace")
