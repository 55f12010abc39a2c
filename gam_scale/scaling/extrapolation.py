"""What a law says of models that were not trained."""

from dataclasses import dataclass

import numpy as np

from gam_scale.report.numbers import Range
from gam_scale.scaling.bootstrap import Bootstrap
from gam_scale.scaling.optimum import Optimum

BEYOND = (10.0, 100.0)
"""Times the largest model of every family: the sizes looked at where none are asked for."""
TOKENS_PER_PARAMETER = 20.0
"""A customary ratio (arXiv 2203.15556, table 3), beside each family's own best one."""
OPTIMAL, ASKED = "optimal", "asked"
PER_PARAMETER = f"{TOKENS_PER_PARAMETER:g} per parameter"
"""How many tokens a model is given: those that are best for its compute, those that were asked
about, those of the customary ratio."""
NORMAL_95 = 1.96
"""Deviations within which 95 of 100 normal numbers lie."""
UNKNOWN = 1e4
"""Ratio of an interval's ends above which what lies between is unknown."""


@dataclass(frozen=True)
class Extrapolation:
    """A model of ``params`` parameters trained on ``tokens``, under a family's law."""

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
    """Of what one run would measure; of models that were asked about."""

    @property
    def is_known(self) -> bool:
        """Whether the runs tell how many tokens it would want, to a factor of :data:`UNKNOWN`."""
        numbers = (self.tokens, self.flops, self.loss)
        ends = self.tokens_interval
        return all(map(np.isfinite, numbers)) and (ends is None or ends[1] <= UNKNOWN * ends[0])


def sizes_beyond(largest: float) -> tuple[float, ...]:
    """The sizes that are looked at unasked, where every family has a model of ``largest``."""
    return tuple(times * largest for times in BEYOND)


def at_size(params: float, optimum: Optimum, draws: Bootstrap) -> list[Extrapolation]:
    """A model of that size on its best number of tokens, and on the customary one."""
    k = optimum.flops_per_pair
    optima = [Optimum(laws[0], k) for laws in draws.laws]
    flops = float(optimum.flops(params))
    tokens = flops / (k * params)
    with np.errstate(over="ignore"):  # a budget past floats is infinite, as intervals take it
        budgets = np.array([float(o.flops(params)) if o.exists else np.nan for o in optima])
    best = Extrapolation(
        OPTIMAL,
        params,
        tokens,
        flops,
        float(optimum.law.loss(params, tokens)),
        draws.between(budgets / (k * params)),
        draws.between(budgets),
        _loss_between(params, tokens, draws),
    )
    customary = at(params, TOKENS_PER_PARAMETER * params, optimum, draws, PER_PARAMETER)
    return [best, customary]


def at(
    params: float,
    tokens: float,
    optimum: Optimum,
    draws: Bootstrap,
    rule: str = ASKED,
    scatter: float | None = None,
) -> Extrapolation:
    """A model of that size on so many tokens.

    Args:
        params: its size.
        tokens: that it is trained on.
        optimum: of the family.
        draws: the family's refits.
        rule: how the tokens were chosen.
        scatter: deviation of runs from the law, of log L, for what one run would measure.
    """
    loss, interval = float(optimum.law.loss(params, tokens)), _loss_between(params, tokens, draws)
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
    """The law's interval, widened by runs' scatter around it: independent, so in quadrature."""
    below, above = (max(0.0, np.log(loss / interval[0])), max(0.0, np.log(interval[1] / loss)))
    noise = NORMAL_95 * scatter
    ends = loss * np.exp(-np.hypot(below, noise)), loss * np.exp(np.hypot(above, noise))
    return (float(ends[0]), float(ends[1])) if np.all(np.isfinite(ends)) else None


def _loss_between(params: float, tokens: float, draws: Bootstrap) -> Range:
    return draws.between(np.array([float(laws[0].loss(params, tokens)) for laws in draws.laws]))
