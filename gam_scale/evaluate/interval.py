"""95% intervals that respect that the tokens of one text are correlated."""

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # the normal distribution's 97.5% point
RESAMPLES = 2000
METHOD = f"percentile bootstrap over sequences, {RESAMPLES} resamples"


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> list[Interval | None]:
    """Intervals of ``sums.sum(0) / counts.sum(0)``: means over the units of n sequences.

    Whole sequences are drawn with replacement (a cluster bootstrap), so nothing is assumed of how
    the tokens of one sequence depend on each other; only sequences count as independent. A mean
    that rests on one sequence has an infinite interval, one that rests on none is None.

    Args:
        sums: (n, k) totals of each sequence in each of k groups, such as nats.
        counts: (n, k) units behind them, such as tokens; 0 where a sequence has none.
        seed: of the draws.
    """
    n, k = sums.shape
    rng = np.random.default_rng(seed)
    draws = np.empty((RESAMPLES, k))
    for start in range(0, RESAMPLES, 100):  # bounds the (draws, n) weights for large n
        weights = rng.multinomial(n, np.full(n, 1.0 / n), size=100).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a resample may miss all sequences of a group
            draws[start : start + 100] = (weights @ sums) / (weights @ counts)
    intervals: list[Interval | None] = []
    for group in range(k):
        of_sequences = int((counts[:, group] > 0).sum())
        if of_sequences == 0:
            intervals.append(None)
            continue
        mean = float(sums[:, group].sum() / counts[:, group].sum())
        low, high = -math.inf, math.inf
        if of_sequences > 1:
            low, high = np.nanquantile(draws[:, group], [0.025, 0.975]).tolist()
        intervals.append(Interval(mean, low, high))
    return intervals


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """The mean of independent values (n,), n at least 1, and its bootstrap interval."""
    (interval,) = bootstrap(values[:, None].astype(np.float64), np.ones((len(values), 1)), seed)
    assert interval is not None
    return interval


def proportion(right: np.ndarray, asked: np.ndarray) -> Interval:
    """The share of right answers over n texts with ``asked`` (n,) questions each.

    Wilson's score interval, which stays honest near 0 and 1, at the number of independent
    questions that has the variance seen between texts; where every text scored the same, each
    counts as one question.
    """
    total, n = float(asked.sum()), len(right)
    p = float(right.sum()) / total
    # Variance of a ratio of sums over texts (linearised), against p (1 - p) / questions.
    variance = float(((right - p * asked) ** 2).sum()) / total**2 * n / max(1, n - 1)
    size = min(total, p * (1 - p) / variance) if variance > 0 else float(n)
    centre = (p + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * math.sqrt(p * (1 - p) / size + Z95**2 / (4 * size**2)) / (1 + Z95**2 / size)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))
