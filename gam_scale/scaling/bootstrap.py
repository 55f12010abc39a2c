"""Intervals of everything a law says, by refitting it to reweighted runs."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gam_scale.errors import UserError
from gam_scale.scaling.fit import Fit, descend
from gam_scale.scaling.law import Law
from gam_scale.scaling.optimum import Optimum

RESAMPLES = 1000
LEVEL = 0.95
MOST_MISSING = 0.02  # share of refits without a value, above which there is no interval
CLOSE = 1e-9  # relative decrease of a refit's objective that ends it: intervals need no more


Quantity = Callable[[Law], float]
"""A number that follows from a law; nan where the law has none."""


@dataclass(frozen=True)
class Bootstrap:
    """Laws refitted to R reweightings of the same runs."""

    laws: list[list[Law]]
    """R lists of one law per family."""
    objective: np.ndarray
    """(R,) of the refits."""
    spare: int
    """Degrees of freedom: independent runs minus fitted coefficients. Few widen the intervals."""
    stretch: float | None = None
    """By how much errors are larger than the residuals behind the refits; None: that of a mean."""

    def interval(
        self, quantity: Quantity, family: int = 0, level: float = LEVEL
    ) -> tuple[float, float] | None:
        """The interval of a quantity that follows from a family's law.

        Args:
            quantity: a function of the law: a coefficient, say, or the best size for a budget.
            family: index of the family in each refit.
            level: probability that the interval holds the true value.

        Returns:
            Its two ends; None where more than :data:`MOST_MISSING` of the refitted laws have no
            such value, or the refits are fewer than 20.
        """
        return self.between(np.array([float(quantity(r[family])) for r in self.laws]), level)

    def between(self, values: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
        """The interval of values (R,), one for each refit; see :func:`interval_between`."""
        return interval_between(values, self.spare, level, self.stretch)


def bootstrap(fitted: Fit, delta: float, run: np.ndarray, count: int, seed: int = 0) -> Bootstrap:
    """Refit under ``count`` random weightings of the runs.

    Each run's rows share one weight, drawn from the exponential distribution and scaled to a mean
    of one within its family (the Bayesian bootstrap, Rubin 1981). Against drawing runs with
    replacement it never loses a size, which small sweeps cannot do without.

    Args:
        fitted: the fit to all runs.
        delta: of the Huber loss.
        run: (n,) rows of one training run have one number.
        count: refits; 0 for no intervals.
        seed: of the weights.
    """
    made = fitted.design
    weights = draw_weights(run, made.family, count, seed)
    each = len(fitted.others)
    if count == 0:
        return Bootstrap([], np.zeros(0), 0)
    end = descend(
        made,
        delta,
        np.tile(fitted.others, (count, 1)),
        weights if each == 1 else np.repeat(weights, each, axis=0),
        inverse=np.tile(fitted.inverse, (count, 1, 1)),
        flat=CLOSE,
    )
    value = np.where(np.isfinite(end.value), end.value, np.inf).reshape(count, each)
    best = value.argmin(axis=1)
    phi = end.x.reshape(count, each, -1)[np.arange(count), best]
    spare = len(np.unique(run)) - made.free
    laws = [made.laws(p) for p in phi]
    return Bootstrap(laws, value.min(axis=1) * delta, spare, _stretch(fitted, delta, spare))


def _stretch(fitted: Fit, delta: float, spare: int) -> float:
    """By how much errors are larger than residuals, of which a fit of P numbers leaves less.

    Least squares leave a share of spare / (spare + P) of the squares. Absolute values leave those
    of a mean: they meet P runs and pull at the others by their signs alone. A Huber loss is taken
    for the former where half of the other runs are within delta of the law, for the latter where a
    quarter is: so simulated intervals hold the truth about as often as they say (coverage.py).
    """
    made = fitted.design
    within = int((np.abs(made.residuals(fitted.phi[None])[0]) < delta).sum()) - made.free
    share = within / max(1, len(made.loss) - made.free)
    squares = float(np.clip((share - 0.25) / 0.25, 0, 1))
    return float(np.sqrt(1 + (1 + squares * (made.free - 1)) / max(spare, 3)))


def interval_between(
    values: np.ndarray, spare: int, level: float = LEVEL, stretch: float | None = None
) -> tuple[float, float] | None:
    """Between which of the refits' ``values`` (R,) the truth lies; None where many are nan.

    Infinite values count, as ones past all others; an interval that ends there is unknown, None.

    Percentiles at the levels that Student's t and the lost degrees of freedom ask for ("expanded
    percentiles", Hesterberg, arXiv 1411.5279, section 3.3): plain percentiles are too narrow where
    few runs, ``spare`` of them, are left over after fitting.
    """
    known = values[~np.isnan(values)]
    if len(values) < 20 or len(known) < (1 - MOST_MISSING) * len(values):
        return None
    tail = expanded_tail((1 - level) / 2, spare, stretch)
    with np.errstate(invalid="ignore"):  # between two infinite values lies nan
        low, high = np.quantile(known, [tail, 1 - tail])
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def draw_weights(run: np.ndarray, family: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, n) weights of rows, see :func:`bootstrap`."""
    if not 0 <= count <= 100_000 or 0 < count < 100:
        raise UserError(f"--bootstrap is {count}; expected 100 to 100,000 refits, or 0 for none")
    rng = np.random.default_rng(seed)
    runs, of_row = np.unique(run, return_inverse=True)
    weights = rng.exponential(size=(count, len(runs)))[:, of_row]
    for f in np.unique(family):
        rows = family == f
        weights[:, rows] /= weights[:, rows].mean(axis=1, keepdims=True)
    return weights


def expanded_tail(tail: float, spare: int, stretch: float | None = None) -> float:
    """The tail to cut percentiles at, so that Student's t with ``spare`` degrees is allowed for.

    Phi(-t stretch), where a mean's stretch is sqrt((spare + 1) / spare); the quantile of t is
    Abramowitz and Stegun's expansion 26.7.5, which is within 1% from 4 degrees on.
    """
    v = max(spare, 3)
    z = NormalDist().inv_cdf(1 - tail)
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-t * (stretch or np.sqrt((v + 1) / v)))


def of_optimum(flops_per_pair: float, what: str) -> Quantity:
    """An attribute ``what`` of the law's :class:`Optimum`; nan where the law has no optimum."""

    def value(law: Law) -> float:
        optimum = Optimum(law, flops_per_pair)
        with np.errstate(over="ignore"):
            return float(getattr(optimum, what)) if optimum.exists else float("nan")

    return value
