"""What a comparison keeps: a config and a result of every cell, small files beside large runs."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row, write_changed
from gam_scale.experiment.results import keep, kept_row, result_path
from gam_scale.files import write_json
from gam_scale.strict import read_record, to_dict

CELL = re.compile(r"[\w.+-]+")
"""A cell's name."""


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


def without_defaults(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Settings that are not as by default; a part of another kind whole."""
    differing = {}
    for key, value in values.items():
        default = defaults.get(key)
        if value == default and key in defaults:
            continue
        if isinstance(value, dict) and isinstance(default, dict):
            same_kind = value.get("kind") == default.get("kind")
            differing[key] = without_defaults(value, default) if same_kind else value
        else:
            differing[key] = value
    return differing


def mean_curve(points: Sequence[tuple[float, float]], most: int = 40) -> list[list[float]]:
    """At most so many points of a line, each the mean of its neighbours, to five digits."""
    width = max(1, -(-len(points) // most))
    parts = [points[i : i + width] for i in range(0, len(points), width)]
    return [[float(f"{sum(c) / len(c):.5g}") for c in zip(*part, strict=True)] for part in parts]
