"""Means over seeds with their spread, and the differences between such means."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from gam_scale.report.numbers import Form, plus_minus


@dataclass(frozen=True)
class Spread:
    """Mean and spread of repeated measurements of one thing."""

    mean: float
    deviation: float | None
    """Sample standard deviation over seeds (n - 1); None for one seed."""
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarise one value or more."""
        values = list(values)
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))

    def text(self, form: Form = "{:,.1f}".format) -> str:
        """Return ``630.3 ± 12.1``, or the value alone for one seed."""
        return plus_minus(self.mean, self.deviation, form)

    def difference(self, other: "Spread") -> tuple[float, float | None]:
        """Return the mean minus ``other``'s and its standard error, sqrt(s1^2 / n1 + s2^2 / n2).

        The error is None if either has only one seed.
        """
        error = None
        if self.deviation is not None and other.deviation is not None:
            error = math.hypot(
                self.deviation / math.sqrt(self.seeds), other.deviation / math.sqrt(other.seeds)
            )
        return self.mean - other.mean, error

    def over(self, other: "Spread") -> float:
        """Return the relative change from ``other``'s mean: -0.6 for 60% less."""
        return self.mean / other.mean - 1
