"""What is kept of cells: a config and a row each, small files beside large runs, and all rows in
one file, with which another machine goes on."""

import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row, write_changed
from gam_scale.experiment.results import keep, kept_row, result_path
from gam_scale.files import read_regular, write_bytes, write_json
from gam_scale.strict import parse_json, read_record, shown, to_dict

CELL = re.compile(r"[\w.+-]+")
"""A cell's name."""
RESULTS = "results.jsonl"
"""Of a folder, its file of rows."""


class KeptCell(Cell):
    """One whose process keeps its row, and whose config is a file of another form than a run's."""

    def row(self) -> Row | None:
        """See :meth:`Cell.row`."""
        kept = kept_row(self.folder, self.name)
        if kept is not None:
            self.write_config()
        return kept

    @abstractmethod
    def renewed(self, saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """What :attr:`config_path` has in another form than today, and decides nothing: as today.

        Args:
            saved: what it has.
            now: what would be written.
        """

    def write_once(self, run: Any) -> Path:
        """Write :attr:`config_path`, which what is there already has to equal.

        Args:
            run: the record that it is, with the ``folder`` of the comparison.

        Raises:
            UserError: the file is of other settings.
        """
        path, values = self.config_path, to_dict(run)
        if path.exists():
            saved = to_dict(read_record(type(run), path))
            saved["folder"] = values["folder"]  # it may have been moved
            saved |= self.renewed(saved, values)
            other = [key for key in values if saved.get(key) != values[key]]
            if other:
                raise UserError(
                    f"{path} has another {other[0]} than the comparison has now; expected the same "
                    "settings, or another --out (and --to)"
                )
        write_changed(path, values)
        return path


def keep_row(folder: Path, name: str, row: Row, config: dict[str, Any]) -> Row:
    """Write a cell's row, whole or not at all.

    Args:
        folder: of the comparison.
        name: of the cell.
        row: what it came to.
        config: what :func:`restore` writes as its config: settings that decide the row, without
            defaults and paths.

    Returns:
        The row as it is kept.
    """
    return keep(folder, name, {"cell": name, **row, "config": config})


def write_rows(rows: Sequence[Row], to: Path) -> None:
    """Write the file of rows, one a line, into a folder that is made if need be."""
    to.mkdir(parents=True, exist_ok=True)
    write_bytes(to / RESULTS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_rows(path: Path, needs: Sequence[str] = ()) -> list[Row]:
    """The rows of such a file, each of which has the keys ``needs``.

    Raises:
        UserError: the file is not such rows.
    """
    try:
        lines = read_regular(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read ({error}); expected {RESULTS}") from None
    rows = [parse_json(line, f"{path}:{i}") for i, line in enumerate(lines, 1)]
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}:{i} is {shown(row)}; expected an object")
        for key in needs:
            if key not in row:
                raise UserError(f"{path}:{i} has no {key}; expected {RESULTS} as a tool wrote it")
    return rows


def restore(folder: Path, rows: Sequence[Row]) -> None:
    """Have cells count as done whose rows were kept elsewhere, as where a machine is lost.

    What ``folder`` has already stays. A cell's settings are checked when its row is read.

    Raises:
        UserError: a row that does not say which cell it is of.
    """
    for row in rows:
        name, config = row.get("cell"), row.get("config")
        if not (isinstance(name, str) and CELL.fullmatch(name) and isinstance(config, dict)):
            raise UserError(
                f"a row of {row['model']} has no cell and config; expected results.jsonl as this "
                "version writes it"
            )
        for path, values in (
            (folder / "configs" / f"{name}.json", config),
            (result_path(folder, name), row),
        ):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, values)


def mean_curve(points: Sequence[tuple[float, float]], most: int = 40) -> list[list[float]]:
    """At most so many points of a line, each the mean of its neighbours, to five digits."""
    width = max(1, -(-len(points) // most))
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [[float(f"{sum(c) / len(c):.5g}") for c in zip(*part, strict=True)] for part in parts]
