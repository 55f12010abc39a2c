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
    diverged: int = 0
    """Seeds whose run diverged, which makes the mean infinite."""

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread":
        """Summarise one value or more; None, or a number that is not finite: its run diverged."""
        every = list(values)
        known = [value for value in every if value is not None and math.isfinite(value)]
        if len(known) < len(every):
            return cls(math.inf, None, len(every), len(every) - len(known))
        deviation = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), deviation, len(known))

    def text(self, form: Form = "{:,.1f}".format) -> str:
        """Return ``630.3 ± 12.1``, or the value alone for one seed; in words if one diverged."""
        if self.diverged:
            some = f"{self.diverged} of {self.seeds} " if self.diverged < self.seeds else ""
            return f"{some}diverged"
        return plus_minus(self.mean, self.deviation, form)

    def difference(self, other: "Spread") -> tuple[float, float | None] | None:
        """Return the mean minus ``other``'s and its standard error, sqrt(s1^2 / n1 + s2^2 / n2).

        The error is None if either has only one seed, and the whole if a run of either diverged.
        """
        if self.diverged or other.diverged:
            return None
        error = None
        if self.deviation is not None and other.deviation is not None:
            error = math.hypot(
                self.deviation / math.sqrt(self.seeds), other.deviation / math.sqrt(other.seeds)
            )
        return self.mean - other.mean, error

    def over(self, other: "Spread") -> float | None:
        """Return the relative change from ``other``'s mean: -0.6 for 60% less.

        None if a run of either diverged.
        """
        if self.diverged or other.diverged:
            return None
        return self.mean / other.mean - 1
