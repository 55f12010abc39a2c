"""Test how well a law fitted to some runs predicts the loss of others, such as large models."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gam_scale.errors import UserError
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.law import Law
from gam_scale.scaling.points import Points, check

SHARE = 0.2  # least share of the runs that is held out
SAME_BUDGET = 0.1  # relative difference of FLOPs within which runs spent one budget
RULES = ("sizes", "budgets", "none")


@dataclass(frozen=True)
class HeldOut:
    """Predictions for runs that the law was not fitted to."""

    law: Law
    """The law fitted to ``rest``."""
    params: np.ndarray
    """(m,) N of the held-out runs."""
    tokens: np.ndarray
    loss: np.ndarray
    """(m,) measured, nats per token."""
    predicted: np.ndarray
    rest: Points
    """The runs that the law was fitted to."""
    description: str
    """The held-out runs in words, for a sentence."""

    @property
    def fitted_error(self) -> float:
        """Mean absolute error on ``rest``, as a share of the loss."""
        return float(np.abs(self.fitted_errors).mean())

    @property
    def fitted_errors(self) -> np.ndarray:
        """Predicted over measured loss, minus one, of ``rest``."""
        return self.law.loss(self.rest.params, self.rest.tokens) / self.rest.loss - 1

    @property
    def errors(self) -> np.ndarray:
        """(m,) predicted over measured loss, minus one, of the held-out runs."""
        return self.predicted / self.loss - 1

    @property
    def mean_error(self) -> float:
        """Mean absolute error, as a share of the loss."""
        return float(np.abs(self.errors).mean())

    @property
    def bias(self) -> float:
        """Mean error; above zero if the law predicts too high a loss."""
        return float(self.errors.mean())


def hold_out(
    points: Points, settings: FitSettings, rule: str = "sizes"
) -> tuple[HeldOut | None, str]:
    """Fit one family without some of its runs and predict these.

    Args:
        points: runs of the family.
        settings: settings of the fit.
        rule: the runs to hold out. ``sizes``: the largest models, at least a fifth of the runs; if
            the rest cannot determine a law, the largest size alone. ``budgets``: likewise the runs
            of most FLOPs. ``COLUMN=VALUE``: the rows with this value. ``none``: no runs.

    Returns:
        The result and an empty string, or None and the reason.
    """
    if rule == "none":
        return None, "no runs were to be held out"
    reason = ""
    for held in _choices(points, rule):
        if not held.any():
            return None, f"no run has {rule}"
        rest, out = points.take(~held), points.take(held)
        try:
            check(rest, "what is left without the runs held out", settings.shared_exponent)
        except UserError as error:
            reason = str(error)
            continue
        law = fit(rest, settings).law
        with np.errstate(over="ignore", invalid="ignore"):
            predicted = law.loss(out.params, out.tokens)
        if not np.isfinite(predicted).all():
            reason = f"without {_described(rule)} the runs have no law"
            continue
        return HeldOut(law, out.params, out.tokens, out.loss, predicted, rest, _described(rule)), ""
    return None, reason


def _described(rule: str) -> str:
    named = {"sizes": "the largest models", "budgets": "the largest budgets"}
    return named.get(rule, f"the runs of {rule}")


def _choices(points: Points, rule: str) -> Iterator[np.ndarray]:
    """Yield masks (n,) of runs to hold out; the first that leaves a law is to be taken."""
    if "=" in rule:
        column, _, value = rule.partition("=")
        cells = points.columns.get(column.strip().lower(), ("",) * len(points))
        yield np.array([cell == value.strip() for cell in cells])
        return
    by = points.params if rule == "sizes" else points.flops
    slack = 1.0 if rule == "sizes" else 1 - SAME_BUDGET
    for share in (SHARE, 0.0):
        ordered = np.sort(by)[::-1]
        last = ordered[max(0, math.ceil(share * len(by)) - 1)]
        yield by >= slack * last
