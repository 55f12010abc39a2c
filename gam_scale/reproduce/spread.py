"""Results of the finished runs, by data set, model and set-up."""

from collections.abc import Iterable
from typing import Any

from gam_scale.experiment.spread import Spread
from gam_scale.grouping import grouped
from gam_scale.reproduce.cells import DATASETS

Key = tuple[str, str, str]
"""Data set, model, set-up."""


class Results:
    """Results of the finished runs, by cell."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        # Rows of runs.csv by cell; the rows of a cell differ by their seeds.
        self.cells = grouped(rows, lambda row: (row["dataset"], row["model"], row["setup"]))

    def spread(self, key: Key, column: str) -> Spread | None:
        """Return mean and spread of a column over a cell's seeds; None if no seed has finished."""
        rows = self.cells.get(key)
        return Spread.of(row[column] for row in rows) if rows else None

    def first(self, key: Key) -> dict[str, Any] | None:
        """Return a row of a cell, for values that its seeds share; None if there is none."""
        rows = self.cells.get(key)
        return rows[0] if rows else None

    def datasets(self) -> list[str]:
        """Return the data sets with a finished run, in the paper's order."""
        names = {dataset for dataset, _, _ in self.cells}
        return [name for name in DATASETS if name in names]

    def seeds(self) -> int:
        """Return the largest number of seeds of any cell."""
        return max((len(rows) for rows in self.cells.values()), default=0)
