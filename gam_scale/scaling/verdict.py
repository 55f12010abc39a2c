"""Decide whether runs have a law at all, and whether they follow the law nearest to them."""

from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from gam_scale.errors import UserError
from gam_scale.scaling.bootstrap import Bootstrap
from gam_scale.scaling.fit import Fit, FitSettings, fit
from gam_scale.scaling.holdout import HeldOut
from gam_scale.scaling.law import STEEPEST, Law
from gam_scale.scaling.points import Points, check
from gam_scale.scaling.trend import trend_with_size

SHALLOWEST = 0.01
"""Least exponent of a law. Below it, the term is like a logarithm, or noise."""
LEAST_EFFECT = 1e-4
"""Least change of a term over all runs, as a share of the loss, that gives it an exponent."""
MOST_ERROR, MOST_WORST = 0.02, 0.1
"""Mean and largest error, as shares of the loss, with which runs still follow a law."""
TREND_LEVEL = 0.01
"""Level of the test for errors that depend on size: the share of good sets of runs that fail it."""
OUTLYING = 5.0
"""Robust standard deviations from the law beyond which a run is an outlier."""


TERMS = (("alpha", "params", "size"), ("beta", "tokens", "data"))
"""The exponent, the column and the word of the law's second and third term."""


class NoLaw(UserError):
    """Runs of one family that no law of this form describes."""


@dataclass(frozen=True)
class Verdict:
    """Whether the runs of a family follow their law, from their distances to it."""

    reasons: tuple[str, ...]
    """Why the runs do not follow the law; empty where they do."""
    trend: float
    """p of the hypothesis that errors do not depend on size."""
    outliers: np.ndarray
    """(m,) rows further than :data:`OUTLYING` deviations from the law."""
    without: Law | None
    """The law of the other runs; None where there are no outliers, or the others have no law."""

    @property
    def follows(self) -> bool:
        """Whether the runs follow the law."""
        return not self.reasons


def refuse_without_law(fitted: Fit, refits: Bootstrap | None, who: str) -> None:
    """Refuse a fit whose exponents the runs do not show.

    Args:
        fitted: fit to the runs of one family.
        refits: its refits to reweighted runs; None or empty: intervals are not checked.
        who: the family in a sentence: "family x", "the runs".

    Raises:
        NoLaw: an exponent lies outside :data:`SHALLOWEST` to :data:`STEEPEST`, its interval begins
            below that, or its term changes by less than :data:`LEAST_EFFECT`.
    """
    form = "so no law of the form E + A / N^alpha + B / D^beta holds"
    made = fitted.design
    logs = np.exp(fitted.phi @ made.terms.T).reshape(3, -1)
    for term, (name, column, effect) in enumerate(TERMS, 1):
        value = float(getattr(fitted.law, name))
        ends = None if refits is None else refits.interval(attrgetter(name))
        if value <= SHALLOWEST or np.ptp(logs[term]) < LEAST_EFFECT * made.loss.mean():
            raise NoLaw(
                f"{who}: the loss does not fall as {column} grows, {form}; expected runs in which "
                "larger and longer ones are better"
            )
        if value >= STEEPEST:
            raise NoLaw(
                f"{who}: what {effect} adds ends within the runs ({name} is above {STEEPEST:g}), "
                f"{form}; expected runs in which the largest models gain from more tokens as "
                "smaller ones do, and the longest from more parameters"
            )
        if ends is not None and ends[0] <= SHALLOWEST:
            raise NoLaw(
                f"{who}: the runs do not show that the loss falls as {column} grows (the interval "
                f"of {name} begins below {SHALLOWEST:g}), {form}; expected more runs, or less "
                "noise between them"
            )


def judge(
    fitted: Fit,
    points: Points,
    settings: FitSettings,
    seed: int = 0,
    held_out: HeldOut | None = None,
) -> Verdict:
    """Judge whether the runs of one family follow their law.

    Args:
        fitted: fit to the runs.
        points: the runs.
        settings: settings of the fit, for a fit without outliers.
        seed: seed of the simulation behind :func:`trend_with_size`.
        held_out: the law's prediction of runs that it was not fitted to, if there is one.
    """
    errors = np.abs(np.exp(fitted.design.residuals(fitted.phi[None])[0]) - 1)
    trend = trend_with_size(fitted, points.run, seed)
    reasons = []
    if errors.mean() > MOST_ERROR:
        reasons.append(f"the mean error is {errors.mean():.1%}, above {MOST_ERROR:.0%}")
    if errors.max() > MOST_WORST:
        reasons.append(f"the largest error is {errors.max():.1%}, above {MOST_WORST:.0%}")
    if held_out is not None and held_out.mean_error > MOST_ERROR:
        reasons.append(
            f"fitted without {held_out.description} the law is off by {held_out.mean_error:.1%} on "
            f"them, above {MOST_ERROR:.0%}"
        )
    if trend <= TREND_LEVEL:
        reasons.append(f"the errors run with size (p = {trend:.2g})")
    outliers = find_outliers(fitted)
    return Verdict(tuple(reasons), trend, outliers, _without(points, outliers, settings))


def find_outliers(fitted: Fit) -> np.ndarray:
    """Return the rows (m,) more than :data:`OUTLYING` robust deviations of log L off the law."""
    distance = np.abs(fitted.design.residuals(fitted.phi[None])[0])
    return np.flatnonzero(distance > OUTLYING * max(scatter(fitted), 1e-6))


def scatter(fitted: Fit) -> float:
    """Return the robust deviation of runs from the law, in log L; infinite if no run counts.

    It is 1.4826 times the median distance. A fit of P numbers by nearly absolute values meets P
    runs exactly, so that the P least distances do not count.
    """
    distance = np.abs(fitted.design.residuals(fitted.phi[None])[0])
    left = np.sort(distance)[fitted.design.n_free :]
    return 1.4826 * float(np.median(left)) if len(left) else np.inf


def _without(points: Points, outliers: np.ndarray, settings: FitSettings) -> Law | None:
    if not len(outliers):
        return None
    rest = points.take(~np.isin(np.arange(len(points)), outliers))
    try:
        check(rest, shared_exponent=settings.shared_exponent)
        fitted = fit(rest, settings)
        refuse_without_law(fitted, None, "the others")
    except UserError:
        return None
    return fitted.law
