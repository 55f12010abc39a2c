"""Predictions of a law for models that were not trained."""

from dataclasses import dataclass

import numpy as np

from gam_scale.report.numbers import Range
from gam_scale.scaling.bootstrap import Bootstrap
from gam_scale.scaling.optimum import Optimum

BEYOND = (10.0, 100.0)
"""Default target sizes, as multiples of the largest size that every family has reached."""
TOKENS_PER_PARAMETER = 20.0
"""A customary ratio (arXiv 2203.15556, table 3), shown beside each family's own best one."""
OPTIMAL, ASKED = "optimal", "asked"
PER_PARAMETER = f"{TOKENS_PER_PARAMETER:g} per parameter"
"""Rules for a model's tokens: as many as are best for its compute, as many as were asked about, or
the customary ratio."""
NORMAL_95 = 1.96
"""Standard deviations within which 95% of a normal distribution lie."""
UNKNOWN = 1e4
"""Ratio of an interval's ends above which the number in it counts as unknown."""


@dataclass(frozen=True)
class Model:
    """A model whose loss is asked about."""

    params: float
    tokens: float
    family: str = ""
    """The family whose law predicts it; empty: every family's."""


@dataclass(frozen=True)
class Extrapolation:
    """What a family's law predicts for a model of ``params`` parameters trained on ``tokens``."""

    rule: str
    """:data:`OPTIMAL`, :data:`PER_PARAMETER` or :data:`ASKED`."""
    params: float
    tokens: float
    flops: float
    loss: float
    tokens_interval: Range
    flops_interval: Range
    loss_interval: Range
    loss_run_interval: Range = None
    """Interval of the loss that one run would measure; only for models that were asked about."""

    @property
    def shown_interval(self) -> Range:
        """The interval beside the loss: of one run where a model was asked about, or of the law."""
        return self.loss_run_interval if self.rule == ASKED else self.loss_interval

    @property
    def is_known(self) -> bool:
        """Whether the runs tell the model's tokens to within a factor of :data:`UNKNOWN`."""
        numbers = (self.tokens, self.flops, self.loss)
        ends = self.tokens_interval
        return all(map(np.isfinite, numbers)) and (ends is None or ends[1] <= UNKNOWN * ends[0])


def sizes_beyond(largest: float) -> tuple[float, ...]:
    """Return the default target sizes, given the largest size that every family has reached."""
    return tuple(times * largest for times in BEYOND)


def at_size(params: float, optimum: Optimum, refits: Bootstrap) -> list[Extrapolation]:
    """Return predictions for a model on its best number of tokens, and on the customary one."""
    k = optimum.flops_per_pair
    optima = [Optimum(laws[0], k) for laws in refits.laws]
    flops = float(optimum.flops(params))
    tokens = flops / (k * params)
    with np.errstate(over="ignore"):  # a budget too large for a float is infinite
        budgets = np.array([float(o.flops(params)) if o.exists else np.nan for o in optima])
    best = Extrapolation(
        OPTIMAL,
        params,
        tokens,
        flops,
        float(optimum.law.loss(params, tokens)),
        refits.between(budgets / (k * params)),
        refits.between(budgets),
        _loss_between(params, tokens, refits),
    )
    customary = predict(params, TOKENS_PER_PARAMETER * params, optimum, refits, PER_PARAMETER)
    return [best, customary]


def predict(
    params: float,
    tokens: float,
    optimum: Optimum,
    refits: Bootstrap,
    rule: str = ASKED,
    scatter: float | None = None,
) -> Extrapolation:
    """Return the prediction for a model of ``params`` parameters on ``tokens`` tokens.

    Args:
        params: size of the model.
        tokens: tokens that the model is trained on.
        optimum: optimum of the family.
        refits: the family's law, refitted to reweighted runs.
        rule: how the tokens were chosen.
        scatter: deviation of runs from the law in log L, for the interval of one run's loss.
    """
    loss, interval = float(optimum.law.loss(params, tokens)), _loss_between(params, tokens, refits)
    return Extrapolation(
        rule,
        params,
        tokens,
        optimum.flops_per_pair * params * tokens,
        loss,
        None,
        None,
        interval,
        None if scatter is None or interval is None else _of_one_run(loss, interval, scatter),
    )


def _of_one_run(loss: float, interval: tuple[float, float], scatter: float) -> Range:
    """Widen the law's interval by the scatter of runs, in quadrature as the two are independent."""
    below, above = (max(0.0, np.log(loss / interval[0])), max(0.0, np.log(interval[1] / loss)))
    noise = NORMAL_95 * scatter
    ends = loss * np.exp(-np.hypot(below, noise)), loss * np.exp(np.hypot(above, noise))
    return (float(ends[0]), float(ends[1])) if np.all(np.isfinite(ends)) else None


def _loss_between(params: float, tokens: float, refits: Bootstrap) -> Range:
    return refits.between(np.array([float(laws[0].loss(params, tokens)) for laws in refits.laws]))
