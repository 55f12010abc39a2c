"""Intervals of all quantities that follow from a law, by refitting it to reweighted runs."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gam_scale.scaling.fit import Fit, descend
from gam_scale.scaling.law import Law
from gam_scale.scaling.optimum import Optimum

RESAMPLES = 1000
FEWEST = 100
"""Fewest refits for intervals."""
LEVEL = 0.95
MOST_MISSING = 0.02  # share of refits without a value, above which there is no interval
CLOSE = 1e-9  # relative decrease of the objective that ends a refit: intervals need no more


Quantity = Callable[[Law], float]
"""A number that follows from a law; nan where the law has none."""


@dataclass(frozen=True)
class Bootstrap:
    """Laws refitted to R reweightings of the same runs."""

    laws: list[list[Law]]
    """R lists of one law per family."""
    objective: np.ndarray
    """(R,) objectives of the refits."""
    degrees_of_freedom: int
    """Degrees of freedom, independent runs minus fitted coefficients; few make intervals wider."""
    error_to_residual: float | None = None
    """Ratio of errors to the residuals behind the refits; None: the ratio for a mean."""

    def interval(
        self, quantity: Quantity, family: int = 0, level: float = LEVEL
    ) -> tuple[float, float] | None:
        """Return the interval of a quantity that follows from a family's law.

        Args:
            quantity: a function of the law, such as a coefficient or the best size for a budget.
            family: index of the family in each refit.
            level: probability that the interval holds the true value.

        Returns:
            Both ends; None if more than :data:`MOST_MISSING` of the refitted laws have no such
            value, an end is infinite, or there are fewer than 20 refits.
        """
        return self.between(np.array([float(quantity(r[family])) for r in self.laws]), level)

    def between(self, values: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
        """Return the interval of values (R,), one per refit; see :func:`interval_between`."""
        return interval_between(values, self.degrees_of_freedom, level, self.error_to_residual)


def bootstrap(fitted: Fit, delta: float, run: np.ndarray, count: int, seed: int = 0) -> Bootstrap:
    """Refit the laws under ``count`` random weightings of the runs.

    Each run's rows share one weight, drawn from the exponential distribution and scaled to a mean
    of one within its family (the Bayesian bootstrap, Rubin 1981). Unlike drawing runs with
    replacement, this never loses a size, which a small sweep could not spare.

    Args:
        fitted: the fit to all runs.
        delta: parameter of the Huber loss.
        run: (n,) the number of each row's training run.
        count: number of refits; 0 for no intervals.
        seed: seed of the weights.
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
    degrees_of_freedom = len(np.unique(run)) - made.n_free
    laws = [made.laws(p) for p in phi]
    return Bootstrap(
        laws,
        value.min(axis=1) * delta,
        degrees_of_freedom,
        _error_to_residual(fitted, delta, degrees_of_freedom),
    )


def _error_to_residual(fitted: Fit, delta: float, degrees_of_freedom: int) -> float:
    """Return the ratio of errors to residuals, which a fit of P numbers makes smaller.

    Least squares leaves the share v / (v + P) of the squared errors, with v degrees of freedom.
    Least absolute values leaves as much as a mean does: the fit meets P runs exactly, and the other
    runs pull at it by their signs alone. A Huber loss counts as least squares if half of the other
    runs are within delta of the law, as absolute values if a quarter is, and as a mixture between.
    With this rule, simulated intervals hold the truth about as often as they claim (coverage.py).
    """
    made = fitted.design
    within = int((np.abs(made.residuals(fitted.phi[None])[0]) < delta).sum()) - made.n_free
    share = within / max(1, len(made.loss) - made.n_free)
    squares = float(np.clip((share - 0.25) / 0.25, 0, 1))
    return float(np.sqrt(1 + (1 + squares * (made.n_free - 1)) / max(degrees_of_freedom, 3)))


def interval_between(
    values: np.ndarray,
    degrees_of_freedom: int,
    level: float = LEVEL,
    error_to_residual: float | None = None,
) -> tuple[float, float] | None:
    """Return the interval of the truth, given the refits' ``values`` (R,); None if many are nan.

    Infinite values count, as larger than all others; an interval that ends there is unknown, None.

    The ends are percentiles at levels that allow for Student's t and the lost degrees of freedom
    ("expanded percentiles", Hesterberg, arXiv 1411.5279, section 3.3). Plain percentiles are too
    narrow where few degrees of freedom are left after fitting.
    """
    known = values[~np.isnan(values)]
    if len(values) < 20 or len(known) < (1 - MOST_MISSING) * len(values):
        return None
    tail = expanded_tail((1 - level) / 2, degrees_of_freedom, error_to_residual)
    with np.errstate(invalid="ignore"):  # interpolating infinite values gives nan
        low, high = np.quantile(known, [tail, 1 - tail])
    return (float(low), float(high)) if np.isfinite([low, high]).all() else None


def draw_weights(run: np.ndarray, family: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return weights (count, n) of rows; see :func:`bootstrap`."""
    assert count == 0 or count >= FEWEST, count
    rng = np.random.default_rng(seed)
    runs, of_row = np.unique(run, return_inverse=True)
    weights = rng.exponential(size=(count, len(runs)))[:, of_row]
    for f in np.unique(family):
        rows = family == f
        weights[:, rows] /= weights[:, rows].mean(axis=1, keepdims=True)
    return weights


def expanded_tail(
    tail: float, degrees_of_freedom: int, error_to_residual: float | None = None
) -> float:
    """Return the level to cut percentiles at, which allows for Student's t with few degrees.

    The level is Phi(-t r). The ratio r is ``error_to_residual``; by default it is that of a mean,
    sqrt((v + 1) / v) for v degrees of freedom. The quantile t is Abramowitz and Stegun's expansion
    26.7.5, within 1% from 4 degrees on.
    """
    v = max(degrees_of_freedom, 3)
    z = NormalDist().inv_cdf(1 - tail)
    t = z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    return NormalDist().cdf(-t * (error_to_residual or np.sqrt((v + 1) / v)))


def of_optimum(flops_per_pair: float, what: str) -> Quantity:
    """Return the quantity ``what`` of a law's :class:`Optimum`; nan if the law has no optimum."""

    def value(law: Law) -> float:
        optimum = Optimum(law, flops_per_pair)
        with np.errstate(over="ignore"):
            return float(getattr(optimum, what)) if optimum.exists else float("nan")

    return value
