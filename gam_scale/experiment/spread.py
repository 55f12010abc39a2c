"""Means over seeds with their spread, and what they differ by."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from gam_scale.report.numbers import Form, plus_minus


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
