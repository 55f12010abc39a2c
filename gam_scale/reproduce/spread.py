"""The finished runs by data set, model and set-up, over their seeds."""

from collections.abc import Iterable
from typing import Any

from gam_scale.experiment.results import grouped
from gam_scale.experiment.spread import Spread
from gam_scale.reproduce.cells import DATASETS

Key = tuple[str, str, str]
"""Data set, model, set-up."""


class Results:
    """What the finished runs measured, by cell."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        # Rows of runs.csv by data set, model and set-up: the seeds of each.
        self.cells = grouped(rows, lambda row: (row["dataset"], row["model"], row["setup"]))

    def spread(self, key: Key, column: str) -> Spread | None:
        """A column of a cell over its seeds; None where no seed is finished."""
        rows = self.cells.get(key)
        return Spread.of(row[column] for row in rows) if rows else None

    def first(self, key: Key) -> dict[str, Any] | None:
        """One of its rows, for what seeds share."""
        rows = self.cells.get(key)
        return rows[0] if rows else None

    def datasets(self) -> list[str]:
        """Those with a finished run, in the paper's order."""
        names = {dataset for dataset, _, _ in self.cells}
        return [name for name in DATASETS if name in names]

    def seeds(self) -> int:
        """The most that any cell has."""
        return max((len(rows) for rows in self.cells.values()), default=0)
