"""Base class of tasks for trained models, and the registry of their kinds, one file each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.kinds import Kinds
from gam_scale.evaluate.scorer import Scorer
from gam_scale.strict import from_dict, shown

Figures = dict[str, float | Interval]
"""Results by name; those that begin with ``accuracy`` are shares of right answers."""
Measure = Callable[[Scorer], Figures]
"""A function that asks a model a task's questions; all ranks call it together."""


@dataclass(frozen=True)
class Material:
    """What tasks are made from, besides their settings."""

    tokenizer: Tokenizer
    documents: Callable[[int], list[np.ndarray]]
    """Returns ids of real texts of at least so many tokens, each with its bos; raises UserError if
    there are none."""
    seq_len: int
    """Most tokens that the model is asked to read."""
    seed: int = 0


@dataclass(frozen=True)
class DownstreamTask(ABC):
    """The settings of one task; each kind is a frozen dataclass."""

    kind: ClassVar[str]

    @abstractmethod
    def ready(self, material: Material) -> Measure:
        """Make the questions; the function returned asks the same ones at every call.

        Raises:
            UserError: the questions cannot be made.
        """


_KINDS: Kinds[DownstreamTask] = Kinds("gam_scale.evaluate.downstream")
downstream = _KINDS.register
"""Decorator that registers a kind of task by its name."""
kinds = _KINDS.all
"""Function that returns every kind by its name."""


def read_tasks(tasks: Mapping[str, Any], where: str) -> dict[str, DownstreamTask]:
    """Read tasks from a config or a file: by name, an object with a ``kind`` and its settings.

    Raises:
        UserError: an unknown kind, or an unknown setting.
    """
    return {name: _read(value, f"{where}.{name}") for name, value in tasks.items()}


def _read(value: Any, where: str) -> DownstreamTask:
    known = kinds()
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f'{where} is {shown(value)}; expected an object with a "kind", one of '
            f"{', '.join(known)}, and its settings"
        )
    settings = {key: setting for key, setting in value.items() if key != "kind"}
    names = [field.name for field in fields(known[kind])]
    if unknown := [key for key in settings if key not in names]:
        raise UserError(
            f"{where}.{unknown[0]} is no setting of kind {kind}; expected some of "
            f"{', '.join(names)}"
        )
    return from_dict(known[kind], settings, where)


def make_ready(
    tasks: Mapping[str, DownstreamTask], material: Material, where: str
) -> dict[str, Measure]:
    """Make the questions of each task and return the functions that ask them.

    Raises:
        UserError: the questions of a task, which the message names, cannot be made.
    """
    measures = {}
    for name, task in tasks.items():
        try:
            measures[name] = task.ready(material)
        except UserError as error:
            raise UserError(f"{where}.{name}: {error}") from None
    return measures
