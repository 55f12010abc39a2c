"""The run directory: one run's config, logs, metrics, checkpoints and report."""

import shutil
from pathlib import Path

from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import write_bytes, write_json
from gam_scale.strict import read_json, to_dict
from gam_scale.train.sinks import JsonLines

MAY_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.micro_batch_size",
    "train.compile",
    "train.recompute",
    "parallel",
    "checkpoint",
    "eval",
    "log",
    "data.cache_dir",
)
"""Settings that a resumed run may change; all others define what the run is."""


class RunDir:
    """Paths of one run, and the check that a resumed run is the same run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.summary = self.path / "summary.json"
        self.report = self.path / "report.html"
        self.logs = self.path / "logs"
        self.restarts = self.path / "restarts.json"
        self.starts = self.path / "starts.json"
        self.ranks = self.path / "ranks.json"
        self.jobs = self.path / "jobs"
        self.cache = self.path / "cache"
        self.checkpoints = CheckpointStore(self.path / "checkpoints")

    def open(self, config: RunConfig, *, fresh: bool) -> None:
        """Create the directory, or check that what is in it is a run of the same ``config``.

        Args:
            config: complete; with vocab_size and steps resolved.
            fresh: remove an earlier run first.

        Raises:
            UserError: the folder holds another run, or cannot be written.
        """
        if fresh:
            self._remove()
        if self.config.exists():
            self._same_run(config)
        elif self.path.is_dir() and any(map(self._of_a_run, self.path.iterdir())):
            raise UserError(
                f"log.run_dir {self.path} has files but no config.json, so it is not a run "
                "directory; expected an empty or a new folder"
            )
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.checkpoints.folder.mkdir(exist_ok=True)
            write_json(self.config, to_dict(config))
        except OSError as error:
            raise UserError(f"log.run_dir {self.path} cannot be written: {error}") from None

    def _remove(self) -> None:
        # Only what is a run directory is deleted: a mistyped path must not cost a home folder.
        if not self.config.exists():
            return
        for item in filter(self._of_a_run, self.path.iterdir()):
            shutil.rmtree(item) if item.is_dir() else item.unlink()

    def _of_a_run(self, item: Path) -> bool:
        """Whether ``item`` is made and removed with a run, not there before and kept after it."""
        # A job has its log and its code in the one; data is read, through the other, before a run
        # is opened, and is the same for the next run.
        return item not in (self.jobs, self.cache)

    def _same_run(self, config: RunConfig) -> None:
        if differs := self.difference(config):
            raise UserError(
                f"{differs}; expected the same value to resume, another log.run_dir, or --fresh to "
                "start over"
            )

    def take_metrics(self, trunk: str | Path, step: int) -> None:
        """Begin metrics.jsonl with another run's lines up to ``step``, where it is left."""
        write_bytes(self.metrics, (Path(trunk) / "metrics.jsonl").read_bytes())
        JsonLines(self.metrics, step).close()

    def difference(self, config: RunConfig) -> str:
        """The first setting, in words, in which this run and ``config`` are not one run."""
        # A run that is older than a setting has its default.
        before = _flatten(to_dict(RunConfig())) | _flatten(read_json(self.config))
        now = _flatten(to_dict(config))
        for key in sorted(before.keys() | now.keys()):
            if not key.startswith(MAY_CHANGE) and before.get(key) != now.get(key):
                return (
                    f"{key} is {now.get(key)!r} but the run in {self.path} has {before.get(key)!r}"
                )
        return ""


def _flatten(data: dict, where: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        path = f"{where}.{key}" if where else key
        if isinstance(value, dict):
            flat |= _flatten(value, path)
        else:
            flat[path] = value
    return flat
