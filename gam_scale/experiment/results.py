"""Rows that an experiment keeps of its finished cells, small files beside large runs."""

from pathlib import Path

from gam_scale.experiment.cell import Row
from gam_scale.files import finite, write_json
from gam_scale.strict import read_json


def result_path(folder: Path, name: str) -> Path:
    """Return the path of a cell's row in the folder of its experiment."""
    return folder / "results" / f"{name}.json"


def kept_row(folder: Path, name: str) -> Row | None:
    """Return a cell's row; None while the cell is not finished."""
    path = result_path(folder, name)
    return read_json(path) if path.exists() else None


def keep_row(folder: Path, name: str, row: Row) -> Row:
    """Write a cell's row, whole or not at all, and return it as it can be read again.

    A number that is not finite becomes None. Rows of earlier versions may hold such numbers.
    """
    row, path = finite(row), result_path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    return row


def kept_rows(folder: Path) -> dict[str, Row]:
    """Return the rows of all finished cells, by the cells' names."""
    paths = sorted((folder / "results").glob("*.json"))
    return {path.stem: read_json(path) for path in paths}
