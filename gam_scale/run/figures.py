"""summary.json read back: the figures of a finished run, each of its own kind or none."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any

from gam_scale.errors import UserError, one_line
from gam_scale.hyperparameters import Chosen
from gam_scale.strict import from_dict, read_json, shown


@dataclass
class Origin:
    """What a run took over from another, as its continued.json holds it, and its summary."""

    run: str
    """Folder of the checkpoint."""
    step: int
    """Of that run."""
    kept: list[str]
    """In words."""
    first_sample: int
    """Of the data stream: where the new run begins to read it."""
    changed: dict[str, Any]
    """Both values of each setting, by dotted key, that the new run has otherwise."""


@dataclass
class _Other:
    """The figures that are no number."""

    sample: Any = None
    """Text of the model's, which may hold any character, NUL too."""
    device: str | None = None
    engine: str | None = None
    code_version: str | None = None
    report: str | None = None
    """Its path; of older versions."""
    compiled: bool | None = None
    validated: list[str] | None = None
    resume_seconds: list[float] | None = None
    continued: Origin | None = None
    chosen: Chosen | None = None


def read_summary(path: Path, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The figures in ``path``; null where one is not known.

    Args:
        path: of a summary.json.
        needs: keys whose figures must be known.

    Raises:
        UserError: the file is damaged, or lacks a figure that is needed.
    """
    figures = read_json(path)
    if not isinstance(figures, dict):
        raise UserError(f"{path} is {shown(figures)}; expected an object")
    other = {key: figures[key] for key in figures.keys() & {each.name for each in fields(_Other)}}
    try:
        from_dict(_Other, other)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(figures.get("sample"), str | None):
        raise UserError(f"{path}: sample is {shown(figures['sample'])}; expected text")
    for key in figures.keys() - other.keys():
        if type(figures[key]) not in (int, float, NoneType):
            raise UserError(f"{path}: {one_line(key)} is {shown(figures[key])}; expected a number")
    for key in needs:
        if figures.get(key) is None:
            raise UserError(f"{path}: {key} is missing; expected the summary of a finished run")
    return figures
