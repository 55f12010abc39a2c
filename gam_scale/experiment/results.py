"""What an experiment keeps of finished cells: a row each, small files beside large runs."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from gam_scale.experiment.cell import Row
from gam_scale.files import write_json
from gam_scale.strict import read_json

T = TypeVar("T")
K = TypeVar("K")


def result_path(folder: Path, name: str) -> Path:
    """Where the row of a cell is kept, in the folder of its experiment."""
    return folder / "results" / f"{name}.json"


def kept_row(folder: Path, name: str) -> Row | None:
    """A cell's row; None while it is not finished."""
    path = result_path(folder, name)
    return read_json(path) if path.exists() else None


def keep(folder: Path, name: str, row: Row) -> Row:
    """Write a cell's row, whole or not at all; and the row."""
    path = result_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    return row


def kept_rows(folder: Path) -> dict[str, Row]:
    """Every finished cell's, by its name."""
    paths = sorted((folder / "results").glob("*.json"))
    return {path.stem: read_json(path) for path in paths}


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by what ``key`` says of each, such as rows by model; in the order that they come."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
