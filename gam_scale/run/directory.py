"""The run directory: one run's config, logs, metrics, checkpoints and report."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from gam_scale.checkpoint.names import CHECKPOINTS
from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore, load_config_of
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import is_leftover, read_regular, remove_leftovers, write_bytes, write_json
from gam_scale.hyperparameters import Chosen
from gam_scale.run.metrics_file import JsonLines
from gam_scale.run.restarts import begun_by_this_job, note_begin, restart_number
from gam_scale.run.settings import (
    MAY_CHANGE,
    differences,
    is_of_stages,
    same_stages,
    why_steps_do_not_fit,
)
from gam_scale.strict import read_json, read_record, shown, to_dict

logger = logging.getLogger("gam_scale")

REMOVED = ".removed-"
"""Prefix of the folders into which --fresh moves a run before it removes it."""


class RunDir:
    """Paths of one run, and the check that a resumed run is the same run.

    Args:
        path: the directory.
        check_lock: the writer's :meth:`RunLock.check`, to be called before each write that others
            would see; it ends a process that has lost the lock.
    """

    def __init__(self, path: str | Path, check_lock: Callable[[], None] = lambda: None) -> None:
        self.path, self.check_lock = Path(path), check_lock
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.diverged = self.path / "diverged.json"
        self.report = self.path / "report.html"
        self.logs = self.path / "logs"
        self.restarts = self.path / "restarts.json"
        self.starts = self.path / "starts.json"
        self.ranks = self.path / "ranks.json"
        self.jobs = self.path / "jobs"
        self.cache = self.path / "cache"
        self.continued = self.path / "continued.json"
        self.chosen = self.path / "chosen.json"
        self.anneal = self.path / "anneal.json"
        self.mirror = self.path / "mirror.json"
        self.anneal_now = self.path / "anneal-now"
        self.checkpoints = CheckpointStore(self.path / CHECKPOINTS)

    @property
    def has_begun(self) -> bool:
        """Whether there is a run that a start goes on with: a config, and a checkpoint."""
        return self.config.exists() and self.checkpoints.latest() is not None

    def open(self, config: RunConfig, *, fresh: bool, data: str = "") -> None:
        """Create the directory, or check that the run in it is a run of the same ``config``.

        Args:
            config: complete, with vocab_size and steps resolved.
            fresh: remove an earlier run first, unless this job, restarted by its scheduler, has
                begun that run itself.
            data: fingerprint of the data stream of ``config``; see :meth:`difference`.

        Raises:
            UserError: the folder holds another run, or cannot be written.
        """
        try:
            self._open(config, data, fresh and self.fresh_removes())
        except OSError as error:
            raise UserError(f"log.run_dir {self.path} cannot be written: {error}") from None

    def fresh_removes(self) -> bool:
        """Return whether ``--fresh`` is to remove what is here: not a run that this job has begun.

        A scheduler that restarts a job repeats its command, ``--fresh`` included.
        """
        return not (restart_number() and begun_by_this_job(self.restarts))

    def _open(self, config: RunConfig, data: str, fresh: bool) -> None:
        if fresh:
            self._remove()
        if self.config.exists():
            self._same_run(config, data)
        elif self.holds_foreign_files():
            raise UserError(
                f"log.run_dir {self.path} has files but no config.json, so it is not a run "
                "directory; expected an empty or a new folder"
            )
        self.checkpoints.best()  # a damaged note would end the run at its first save
        self.path.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()
        # Written first, since this file makes the folder a run directory.
        write_json(self.config, to_dict(config))
        if fresh:
            note_begin(self.restarts)
        self.logs.mkdir(exist_ok=True)
        self.checkpoints.folder.mkdir(exist_ok=True)

    def _remove(self) -> None:
        """Move an earlier run aside, all of it or nothing, and remove it."""
        # Only what is a run directory is deleted: a mistyped path must not cost a home folder.
        if not self.config.exists():
            return
        # A run that a kill leaves midway begins anew: checkpoints go first, config.json last.
        items = [item for item in self.path.iterdir() if self._of_a_run(item)]
        items.sort(key=lambda item: (item == self.config) - (item == self.checkpoints.folder))
        aside, moved = Path(tempfile.mkdtemp(prefix=REMOVED, dir=self.path)), []
        try:
            for item in items:
                item.rename(aside / item.name)
                moved.append(item)
        except OSError as error:
            for item in reversed(moved):
                (aside / item.name).rename(item)
            aside.rmdir()
            raise UserError(
                f"--fresh: the run in {self.path} cannot be removed ({error}), and was left whole"
            ) from None
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Remove what killed starts left unfinished; the lock's holder is the only writer."""
        for aside in self.path.glob(f"{REMOVED}*"):
            shutil.rmtree(aside, ignore_errors=True)
            if aside.exists():
                logger.warning("%s cannot be removed; nothing needs it", aside)
        for folder in (self.path, self.logs):
            remove_leftovers(folder)
        self.checkpoints.remove_leftovers()

    def _of_a_run(self, item: Path) -> bool:
        """Return whether ``item`` belongs to a run, with which it is made and removed."""
        # ``jobs`` holds the log and code of the job that now runs. ``cache`` holds data: it is read
        # before a run is opened, and is the same for the next run.
        return item not in (self.jobs, self.cache) and not item.name.startswith(REMOVED)

    def holds_foreign_files(self) -> bool:
        """Return whether this folder is no run directory and holds files of something else."""
        is_folder = not self.config.exists() and self.path.is_dir()
        return is_folder and any(map(self._is_foreign, self.path.iterdir()))

    def _is_foreign(self, item: Path) -> bool:
        """Return whether ``item`` is no leftover of a start killed before it wrote config.json."""
        if item in (self.logs, self.checkpoints.folder):  # older versions made them first
            return not item.is_dir() or any(item.iterdir())
        return self._of_a_run(item) and not is_leftover(item)

    def _same_run(self, config: RunConfig, data: str) -> None:
        if differs := self.difference(config, data):
            raise UserError(
                f"{differs}; expected the same value to resume, another log.run_dir, or --fresh to "
                "start over"
            )
        newest, done = self.checkpoints.latest(), (self.checkpoints.steps() or [0])[-1]
        steps = config.train.steps
        if steps < done:
            raise UserError(
                f"train.steps is {steps} but the run in {self.path} has done {done}; expected at "
                "least that many, another log.run_dir, or --fresh to start over"
            )
        if newest is None or "train.steps" not in differences(read_json(self.config), config):
            return
        if differs := why_steps_do_not_fit(load_config_of(newest), done, config):
            raise UserError(
                f"{differs}; expected the same train.steps, or a new log.run_dir with "
                f"checkpoint.continue_from {self.path}, whose schedule is its own"
            )

    def take_metrics(self, trunk: str | Path, step: int) -> None:
        """Begin metrics.jsonl with the trunk's lines up to ``step``, where this run leaves it."""
        write_bytes(self.metrics, read_regular(Path(trunk) / "metrics.jsonl"))
        JsonLines(self.metrics, step).close()

    def difference(self, config: RunConfig, data: str = "") -> str:
        """Return, in words, the first setting by which ``config`` is another run; empty if none.

        Args:
            data: fingerprint of the data stream of ``config``: if this run has trained on the same
                stream, ``data.sets`` may name other paths.
        """
        different, newest = differences(read_json(self.config), config), self.checkpoints.latest()
        may_change: tuple[str, ...] = MAY_CHANGE
        done = (self.checkpoints.steps() or [0])[-1]
        if any(map(is_of_stages, different)) and same_stages(self.config, config, done):
            may_change += ("train.stages",)
        if newest is None and self.chosen.exists():  # the rules may choose anew
            may_change += tuple(
                f"train.{name}" for name in read_record(Chosen, self.chosen).settings
            )
        other_sets = data and any(key.startswith("data.sets") for key in different)
        if other_sets and newest and load_state(newest).data_fingerprint == data:
            may_change += ("data.sets",)
        for key, (before, now) in different.items():
            if not key.startswith(may_change):
                return f"{key} is {shown(now)} but the run in {self.path} has {shown(before)}"
        return ""
