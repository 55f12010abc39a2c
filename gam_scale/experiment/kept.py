"""Files kept of cells: a config and a row each, small beside the runs, and a file of all rows.

From the file of all rows, another machine can continue the experiment.
"""

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row, write_changed
from gam_scale.experiment.results import keep_row, kept_row, result_path
from gam_scale.files import finite, finite_line, read_regular, write_bytes, write_json
from gam_scale.strict import parse_json, read_record, shown, to_dict

CELL = re.compile(r"[\w.+-]+")
"""Pattern of a cell's name."""
RESULTS = "results.jsonl"
"""Name of the file of rows in a folder."""


class KeptCell(Cell):
    """A cell whose process keeps its row, and whose config file has another form than a run's."""

    def row(self) -> Row | None:
        """See :meth:`Cell.row`."""
        kept = kept_row(self.folder, self.name)
        if kept is not None:
            self.write_config()
        return kept

    @abstractmethod
    def harmless_changes(self, saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """Return, by key, values that replace saved ones whose difference does not change the row.

        Args:
            saved: values of the file at :attr:`config_path`.
            now: values that would be written.
        """

    def write_once(self, run: Any) -> Path:
        """Write :attr:`config_path`; a file that is there has to have the same settings.

        Args:
            run: the record to write, with the ``folder`` of the comparison.

        Raises:
            UserError: the file has other settings.
        """
        path, values = self.config_path, to_dict(run)
        if path.exists():
            saved = to_dict(read_record(type(run), path))
            saved["folder"] = values["folder"]  # the folder may have moved
            saved |= self.harmless_changes(saved, values)
            other = [key for key in values if saved.get(key) != values[key]]
            if other:
                raise UserError(
                    f"{path} has another {other[0]} than the comparison has now; expected the same "
                    "settings, or another --out (and --to)"
                )
        write_changed(path, values)
        return path


def keep_row_with_config(folder: Path, name: str, row: Row, config: dict[str, Any]) -> Row:
    """Write a cell's row with its name and config, whole or not at all.

    Args:
        folder: folder of the comparison.
        name: name of the cell.
        row: result of the cell.
        config: the cell's config as :func:`restore` writes it: settings that decide the row,
            without defaults and paths.

    Returns:
        The row as it is kept.
    """
    return keep_row(folder, name, {"cell": name, **row, "config": config})


def write_rows(rows: Sequence[Row], to: Path) -> None:
    """Write the file of rows, one per line, into a folder that is made if need be."""
    to.mkdir(parents=True, exist_ok=True)
    write_bytes(to / RESULTS, "".join(map(finite_line, rows)).encode())


def read_rows(path: Path, needs: Sequence[str] = ()) -> list[Row]:
    """Read a file of rows and check that each has the keys ``needs``.

    Raises:
        UserError: the file does not consist of such rows.
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
    """Write the files of cells whose rows were kept elsewhere, so that they count as finished.

    This is for a machine that was lost. Files that ``folder`` has already stay. A cell's settings
    are checked when its row is read.

    Raises:
        UserError: a row does not have its cell's name and config.
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
                write_json(path, finite(values))


def mean_curve(points: Sequence[tuple[float, float]], most: int = 40) -> list[list[float]]:
    """Reduce a curve to at most ``most`` points, each the mean of neighbours, to five digits."""
    width = max(1, -(-len(points) // most))
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [[float(f"{sum(c) / len(c):.5g}") for c in zip(*part, strict=True)] for part in parts]
