"""What a comparison keeps: a config and a result of every cell, small files beside large runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Row
from gam_scale.files import write_json
from gam_scale.strict import read_json


def result_path(folder: Path, name: str) -> Path:
    """Where the row of a cell is kept."""
    return folder / "results" / f"{name}.json"


def kept_row(folder: Path, name: str) -> Row | None:
    """A cell's row; None while it is not finished."""
    path = result_path(folder, name)
    return read_json(path) if path.exists() else None


def keep_row(folder: Path, name: str, row: Row) -> None:
    """Write a cell's row, whole or not at all."""
    path = result_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)


def write_once(path: Path, values: dict[str, Any], *, saved: dict[str, Any] | None = None) -> Path:
    """A cell's config file, which what is there already has to equal.

    Args:
        path: of the file.
        values: complete.
        saved: of the file that is there, with defaults for what is younger than it.

    Raises:
        UserError: the file is of other settings.
    """
    saved = read_json(path) if saved is None and path.exists() else saved
    if saved is not None:
        other = [key for key in values if saved.get(key) != values[key]]
        if other:
            raise UserError(
                f"{path} has another {other[0]} than the comparison has now; expected the same "
                "settings, or another --out"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)
    return path


def mean_curve(points: Sequence[tuple[float, float]], most: int = 40) -> list[list[float]]:
    """At most so many points of a line, each the mean of its neighbours, to five digits."""
    width = max(1, -(-len(points) // most))
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [[float(f"{sum(c) / len(c):.5g}") for c in zip(*part, strict=True)] for part in parts]
