"""95% intervals that allow for correlation between the tokens of one text."""

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
    """Return bootstrap intervals of the k means ``sums.sum(0) / counts.sum(0)``.

    Whole sequences are drawn with replacement (a cluster bootstrap): sequences count as independent
    of each other, and nothing is assumed about the tokens of one sequence. A mean over one sequence
    has an infinite interval; a mean over none is None.

    Args:
        sums: (n, k) totals, such as nats, of each sequence in each of k groups.
        counts: (n, k) numbers of units, such as tokens; 0 where a sequence has none.
        seed: seed of the draws.
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
    """Return the mean of n >= 1 independent values (n,) and its bootstrap interval."""
    (interval,) = bootstrap(values[:, None].astype(np.float64), np.ones((len(values), 1)), seed)
    assert interval is not None
    return interval


def proportion(right: np.ndarray, asked: np.ndarray) -> Interval:
    """Return the share of right answers, ``right`` (n,) of ``asked`` (n,) in n texts.

    Its interval is Wilson's score interval, which stays honest near 0 and 1. The sample size is the
    number of independent questions that would give the variance seen between texts (at most all),
    or n if every text has the same share.
    """
    total, n = float(asked.sum()), len(right)
    p = float(right.sum()) / total
    # Linearised variance of a ratio of sums; of independent questions it is p (1 - p) / size.
    variance = float(((right - p * asked) ** 2).sum()) / total**2 * n / max(1, n - 1)
    size = min(total, p * (1 - p) / variance) if variance > 0 else float(n)
    centre = (p + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * math.sqrt(p * (1 - p) / size + Z95**2 / (4 * size**2)) / (1 + Z95**2 / size)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))
