"""Means over seeds with their spread, and what they differ by."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gam_scale.report.numbers import Form, plus_minus
from gam_scale.reproduce.cells import DATASETS


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    mean: float
    deviation: float | None
    """Sample standard deviation over seeds (n - 1); None for one seed."""
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of at least one value."""
        values = list(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, form: Form = "{:,.1f}".format) -> str:
        """``630.3 ± 12.1``, or the value of the only seed."""
        return plus_minus(self.mean, self.deviation, form)

    def less(self, other: "Spread") -> tuple[float, float | None]:
        """The difference of the means and its standard error, sqrt(s1^2 / n1 + s2^2 / n2).

        The error is None where one of them has one seed.
        """
        error = None
        if self.deviation is not None and other.deviation is not None:
            error = math.hypot(
                self.deviation / math.sqrt(self.seeds), other.deviation / math.sqrt(other.seeds)
            )
        return self.mean - other.mean, error

    def over(self, other: "Spread") -> float:
        """The relative change of the means: -0.6 for 60% less."""
        return self.mean / other.mean - 1


Key = tuple[str, str, str]
"""Data set, model, set-up."""


def by_cell(rows: Iterable[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """Rows of runs.csv by data set, model and set-up: the seeds of each."""
    cells: dict[Key, list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["dataset"], row["model"], row["setup"]), []).append(row)
    return cells


class Results:
    """What the finished runs measured, by cell."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.cells = by_cell(rows)

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
