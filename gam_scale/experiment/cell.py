"""A cell of an experiment: one run of its grid, with its cost and its state."""

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

FORWARD_AND_BACKWARD = 3.0  # cost of a training step over that of a forward pass
DECIDE = ("model", "data", "train", "eval")
"""Sections of a config on which the row of a whole run depends."""
SPEED_ONLY = ("train.compile", "train.recompute", "train.micro_batch_size")
"""Settings that change how fast a cell trains, and not its result."""

Row = dict[str, Any]
"""The result of a finished cell, by the columns of the experiment's CSV."""
State = Literal["absent", "training", "unfinished", "finished"]
"""``absent``: not begun. ``training``: in training, by a process that this host can see.
``unfinished``: begun, then killed, failed or queued; training it again continues it."""


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """One run of an experiment, whose subclass adds the axes that tell its cells apart."""

    trainer: ClassVar[str] = "gam_scale.train.in_turn"
    """The module that trains cells one after another when it is run with their config files."""

    seed: int
    config: RunConfig
    folder: Path
    """Folder of the experiment, which keeps configs and logs of its cells in ``configs``."""
    epoch_tokens: int = 0
    """Tokens in one epoch of its data, for a config that counts ``train.epochs``."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the cell's files: its place on the axes."""

    @abstractmethod
    def write_config(self) -> Path:
        """Write :attr:`config_path`, the file for :attr:`trainer`, and return this path.

        Raises:
            UserError: the config cannot work, or the file there has other settings.
        """

    @abstractmethod
    def row(self) -> Row | None:
        """Return the result of the cell; None while it is not finished.

        Raises:
            UserError: the result there was trained with other settings.
        """

    @property
    def settings_free_to_differ(self) -> tuple[str, ...]:
        """Dotted keys of settings that may differ between its config and its trained row."""
        return ()

    @property
    def config_path(self) -> Path:
        """Path of the config file; the log of the training is beside it."""
        return self.folder / "configs" / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        """Directory of its run."""
        return Path(self.config.log.run_dir)

    def keep_config(self, now: str, wanted: str) -> Path:
        """Write the config to :attr:`config_path`, unless the file there has other settings.

        Args:
            now: what the file is compared with, for the error message.
            wanted: what would be accepted, for the error message.

        Raises:
            UserError: the file has this cell with other settings.
        """
        path, values = self.config_path, to_dict(self.config)
        if path.exists():
            saved = to_dict(from_dict(RunConfig, read_json(path)))
            if not saved["data"]["sets"]:  # restored from a row, which has no paths
                saved["data"]["sets"] = values["data"]["sets"]
            if key := changed_setting(saved, self.config, DECIDE, self.settings_free_to_differ):
                raise UserError(f"{path} has another {key} than {now}; expected {wanted}")
        write_changed(path, values)
        return path

    def state(self) -> State:
        """Return what has become of the cell; see :meth:`row` for errors."""
        if self.row() is not None:
            return "finished"
        if is_held(self.run_dir):
            return "training"
        return "unfinished" if self.run_dir.exists() else "absent"

    @cached_property
    def model(self) -> LanguageModel:
        """The model, without weights."""
        return outline(self.config.model)

    @property
    def tokens(self) -> float:
        """Tokens of its training, in whole steps; to within a step if the config counts epochs."""
        return total_tokens(self.config) or self.config.train.epochs * self.epoch_tokens

    @cached_property
    def flops(self) -> float:
        """FLOPs of its training: three forward passes per token, of the model with its head."""
        forward = mean_over_tokens(self.config, self.model.flops_per_token)
        return FORWARD_AND_BACKWARD * forward * self.tokens

    @property
    def branches(self) -> bool:
        """Whether it branches off another run's checkpoint, its trunk."""
        return bool(self.config.checkpoint.branch_of)

    @property
    def shared_steps(self) -> int:
        """Steps that its trunk trains for it; 0 without a trunk."""
        return stable_steps(self.config.train, self.config.train.steps) if self.branches else 0

    @property
    def own_flops(self) -> float:
        """The part of :attr:`flops` that is left to do once the trunk is trained."""
        shared = self.shared_steps / self.config.train.steps if self.branches else 0.0
        return self.flops * (1 - shared)


def write_changed(path: Path, values: dict[str, Any]) -> None:
    """Write values to a JSON file, unless it has them already."""
    if not path.exists() or read_json(path) != values:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values)


def changed_setting(
    saved: dict[str, Any],
    config: RunConfig,
    sections: Sequence[str],
    settings_free_to_differ: Sequence[str] = (),
) -> str | None:
    """Return the dotted key of a setting in which a saved config differs, if there is one.

    Args:
        saved: values of a config file; a setting newer than the file counts as its default.
        config: the current config.
        sections: the sections that are compared, without :data:`SPEED_ONLY`.
        settings_free_to_differ: further settings that are not compared.
    """
    changed = [
        key
        for key in differences(saved, config)
        if key.partition(".")[0] in sections and key not in (*SPEED_ONLY, *settings_free_to_differ)
    ]
    return min(changed, key=lambda key: key.count("."), default=None)  # outer keys first
