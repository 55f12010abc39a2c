"""Reading summary.json: the figures of a finished run, each of its own type or None."""

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
    """What a run took over from another, as in its continued.json and its summary."""

    run: str
    """Folder of the other run's checkpoint."""
    step: int
    """Step of that checkpoint."""
    kept: list[str]
    """What the run took over, in words: "weights", ..."""
    first_sample: int
    """Sample of the data stream that the new run reads first."""
    changed: dict[str, Any]
    """Settings that differ, by dotted key: the old and the new value."""


@dataclass
class _Other:
    """The figures that are not numbers."""

    sample: Any = None
    """A text by the model, which may hold any character, NUL too."""
    device: str | None = None
    engine: str | None = None
    code_version: str | None = None
    report: str | None = None
    """Path of report.html, in summaries of older versions."""
    compiled: bool | None = None
    validated: list[str] | None = None
    resume_seconds: list[float] | None = None
    continued: Origin | None = None
    chosen: Chosen | None = None


def read_summary(path: Path, needs: Sequence[str] = (), has: Sequence[str] = ()) -> dict[str, Any]:
    """Return the figures in ``path``; a figure that is not known is None.

    Args:
        path: a summary.json.
        needs: keys whose figures must be known.
        has: keys that must be there; a run that diverged has null for some.

    Raises:
        UserError: the file is damaged, or lacks a figure of ``needs`` or a key of ``has``.
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
    for key in (*needs, *has):
        if key not in figures or (key in needs and figures[key] is None):
            raise UserError(f"{path}: {key} is missing; expected the summary of a finished run")
    return figures
