"""A cell of an experiment: one run of its grid, what that costs, and what has become of it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from gam_scale.config import RunConfig
from gam_scale.config.stages import mean_over_tokens, total_tokens
from gam_scale.errors import UserError
from gam_scale.files import write_json
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.run.lock import is_held
from gam_scale.run.settings import differences
from gam_scale.schedule import stable_steps
from gam_scale.strict import from_dict, read_json, to_dict

FORWARD_AND_BACKWARD = 3.0  # a training step over a forward pass
DECIDE = ("model", "data", "train", "eval")
"""Sections of a config on which the row of a whole run depends."""
SPEED_ONLY = ("train.compile", "train.recompute", "train.micro_batch_size")
"""Settings that change how fast a cell trains and not what it comes to."""

Row = dict[str, Any]
"""What a finished cell comes to, by the columns of the experiment's CSV."""
State = Literal["absent", "training", "unfinished", "finished"]
"""Not begun; trained now by a process that this host can see; begun, and killed, failed or queued;
done. To train the cell again goes on with an unfinished one."""


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """One run; an experiment adds the axes that tell its cells apart."""

    trainer: ClassVar[str] = "gam_scale.train.in_turn"
    """The module that is run with config files to train cells one after another."""

    seed: int
    config: RunConfig
    folder: Path
    """Of the experiment, which keeps configs and logs of its cells in ``configs``."""
    epoch_tokens: int = 0
    """Of one epoch of its data, for a config that counts ``train.epochs``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its files: where it stands on the axes."""

    @abstractmethod
    def write_config(self) -> Path:
        """Write :attr:`config_path`, which :attr:`trainer` takes, and return it.

        Raises:
            UserError: the config cannot work, or the file there is of another experiment.
        """

    @abstractmethod
    def row(self) -> Row | None:
        """What it came to; None while it is not finished.

        Raises:
            UserError: what is there was trained with other settings.
        """

    @property
    def open_settings(self) -> tuple[str, ...]:
        """Settings, by dotted key, that its row may have been trained with otherwise."""
        return ()

    @property
    def config_path(self) -> Path:
        """The config as a file; the log of its training stands beside it."""
        return self.folder / "configs" / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        """Of its run."""
        return Path(self.config.log.run_dir)

    def keep_config(self, now: str, wanted: str) -> Path:
        """Write :attr:`config_path`, unless another run's is there.

        Args:
            now: what it is that has other settings than the file, for the message.
            wanted: what would be accepted, likewise.

        Raises:
            UserError: the file has this cell with other settings.
        """
        path, values = self.config_path, to_dict(self.config)
        if path.exists():
            saved = to_dict(from_dict(RunConfig, read_json(path)))
            if not saved["data"]["sets"]:  # restored from a row, which has no paths
                saved["data"]["sets"] = values["data"]["sets"]
            if key := changed_setting(saved, self.config, DECIDE, self.open_settings):
                raise UserError(f"{path} has another {key} than {now}; expected {wanted}")
        write_changed(path, values)
        return path

    def state(self) -> State:
        """What has become of it; see :meth:`row` for errors."""
        if self.row() is not None:
            return "finished"
        if is_held(self.run_dir):
            return "training"
        return "unfinished" if self.run_dir.exists() else "absent"

    @cached_property
    def model(self) -> LanguageModel:
        """Without weights."""
        return outline(self.config.model)

    @property
    def tokens(self) -> float:
        """Trained on: whole steps, or to within a step where the config counts epochs."""
        return total_tokens(self.config) or self.config.train.epochs * self.epoch_tokens

    @cached_property
    def flops(self) -> float:
        """Of training: three forward passes a token, counted from the model, head included."""
        forward = mean_over_tokens(self.config, self.model.flops_per_token)
        return FORWARD_AND_BACKWARD * forward * self.tokens

    @property
    def branches(self) -> bool:
        """Whether it goes on from another run's checkpoint."""
        return bool(self.config.checkpoint.branch_of)

    @property
    def shared_steps(self) -> int:
        """Steps that its trunk has done for it."""
        return stable_steps(self.config.train, self.config.train.steps) if self.branches else 0

    @property
    def own_flops(self) -> float:
        """Of ``flops``, what is left to do once the trunk is there."""
        shared = self.shared_steps / self.config.train.steps if self.branches else 0.0
        return self.flops * (1 - shared)


def write_changed(path: Path, values: dict[str, Any]) -> None:
    """Write a file unless it has these values."""
    if not path.exists() or read_json(path) != values:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)


def changed_setting(
    saved: dict[str, Any],
    config: RunConfig,
    sections: Sequence[str],
    open_settings: Sequence[str] = (),
) -> str | None:
    """A setting of ``sections``, by dotted key, that a saved config has otherwise, if any.

    Args:
        saved: of a config's file; a setting that is younger has its default there.
        config: of today.
        sections: those that decide what a run comes to; :data:`SPEED_ONLY` is left out.
        open_settings: more that are left out.
    """
    changed = [
        key
        for key in differences(saved, config)
        if key.partition(".")[0] in sections and key not in (*SPEED_ONLY, *open_settings)
    ]
    return min(changed, key=lambda key: key.count("."), default=None)  # width before its heads
