"""Do a task of a stage: a list of items, one after another or in several processes.

``python -m gam_scale.preparation.task FILE`` does what the file lists.
"""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from gam_scale import cli
from gam_scale.data.workers import WorkerDied, Workers
from gam_scale.errors import UserError
from gam_scale.files import write_json
from gam_scale.preparation.folder import Folder
from gam_scale.preparation.saved import done_items
from gam_scale.preparation.stages import item_worker
from gam_scale.strict import read_record


@dataclass(frozen=True)
class Task:
    """What a task is to do, as its file says it.

    ``folder`` is the preparation's; ``processes`` is how many processes do one item each at a time.
    """

    folder: str
    stage: str
    items: list[str]
    processes: int

    def write(self, path: Path) -> Path:
        """Write the task's file and return its path."""
        write_json(path, vars(self))
        return path

    def run(self) -> None:
        """Do the items that are missing, each in one process.

        Raises:
            UserError: an item failed (raised once the others are done), or a process was killed.
        """
        missing = [item for item in self.items if item not in self._done()]
        print(f"{len(missing)} of {len(self.items)} items are to be done", flush=True)
        count = min(self.processes, len(missing))
        if count < 2:
            self._one_by_one(missing)
            return
        with Workers(count, item_worker, Path(self.folder), self.stage) as pool:
            waiting = [(item, pool.submit(item)) for item in missing]
            errors = [_tell(item, future.exception()) for item, future in waiting]
        _raise_first(errors)

    def _one_by_one(self, missing: list[str]) -> None:
        work = item_worker(Path(self.folder), self.stage)
        errors: list[BaseException | None] = []
        for item in missing:
            error = None
            try:
                work(item)
            except Exception as raised:
                error = raised
            errors.append(_tell(item, error))
        _raise_first(errors)

    def _done(self) -> set[str]:
        return done_items(Folder(Path(self.folder)) / self.stage)


def _tell(item: str, error: BaseException | None) -> BaseException | None:
    print(f"{item}: {'done' if error is None else error}", flush=True)
    return error


def _raise_first(errors: list[BaseException | None]) -> None:
    """Raise the first error, if any; explain a process that the system killed."""
    failed = [error for error in errors if error is not None]
    if not failed:
        return
    if isinstance(failed[0], WorkerDied):
        raise UserError(
            "a process of this task was killed, most likely for memory; expected more memory for "
            "it (GAM_SBATCH=mem=...), or fewer cores (--cpus-per-task, --workers)"
        )
    raise failed[0]


@dataclass(frozen=True)
class SlurmTask:
    """What submitit calls on Slurm, and calls again when Slurm restarts the job."""

    file: str

    def checkpoint(self) -> "object":
        """Return the same job, to be queued again at the time limit or a preemption.

        What is done is not done again.
        """
        import submitit

        return submitit.helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        """Do the task; after an error, end the process with the status of a command line."""
        try:
            read_record(Task, Path(self.file)).run()
        except Exception as error:
            if (known := cli.ending(error)) is None:
                raise
            status, message = known
            print(f"error: {message}", flush=True)
            sys.exit(status)  # submitit takes no SystemExit for a result


def main() -> None:
    """Do the task in a file, as a process of this machine."""
    # Ctrl-C reaches every process of the terminal; the command that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parser = cli.Parser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    read_record(Task, parser.parse_args().file).run()


if __name__ == "__main__":
    cli.run(main)
