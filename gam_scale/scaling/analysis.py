"""Everything that one set of runs says: a law for each family, and how the families differ."""

import math
import zlib
from dataclasses import dataclass, field
from itertools import combinations
from operator import attrgetter
from typing import Any

import numpy as np

from gam_scale.errors import UserError
from gam_scale.report.numbers import Range
from gam_scale.scaling.bootstrap import (
    LEVEL,
    RESAMPLES,
    Bootstrap,
    bootstrap,
    of_optimum,
)
from gam_scale.scaling.compare import DRAWS, Test, compare, differences
from gam_scale.scaling.fit import Fit, FitSettings, fit
from gam_scale.scaling.holdout import HeldOut, hold_out
from gam_scale.scaling.isoflop import IsoFlop, Parabola, isoflop
from gam_scale.scaling.law import COEFFICIENTS
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points, check, named
from gam_scale.scaling.verdict import NoLaw, Verdict, judge, refuse_without_law

TARGETS = (1e9, 7e9)
"""Parameters of the models that are extrapolated to."""
TOKENS_PER_PARAMETER = 20.0
"""A customary ratio (arXiv 2203.15556, table 3), beside each family's own best one."""
MOST_FLOPS = 1e60
"""Upper bound on the compute at which a target size may be the best one. A law that asks for more
says that size has stopped to matter: its family is reported as one without a law."""


@dataclass(frozen=True)
class Settings:
    """How runs are analysed."""

    fit: FitSettings = field(default_factory=FitSettings)
    resamples: int = RESAMPLES
    """Refits behind the intervals; 0: none."""
    draws: int = DRAWS
    """Simulated data sets behind each test of two families."""
    seed: int = 0
    targets: tuple[float, ...] = TARGETS


@dataclass(frozen=True)
class Extrapolation:
    """A model that was not trained, of ``params`` parameters and trained on ``tokens``."""

    rule: str
    """``optimal``: for its compute, under the family's law; ``20 per parameter``."""
    params: float
    tokens: float
    flops: float
    loss: float
    tokens_interval: Range
    flops_interval: Range
    loss_interval: Range


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    name: str
    points: Points
    fit: Fit
    bootstrap: Bootstrap
    optimum: Optimum
    intervals: dict[str, Range]
    """Of the coefficients, and of the optimum's ``a``, ``b`` and ``G``."""
    verdict: Verdict
    """Whether the runs follow the law."""
    held_out: HeldOut | None
    held_out_note: str
    isoflop: IsoFlop
    extrapolations: list[Extrapolation]

    @property
    def worst(self) -> float:
        """Largest error of the fit, as a share of the loss."""
        return float(np.abs(self._errors()).max())

    @property
    def error(self) -> float:
        """Mean absolute error of the fit, as a share of the loss."""
        return float(np.abs(self._errors()).mean())

    def _errors(self) -> np.ndarray:
        return self.fit.law.loss(self.points.params, self.points.tokens) / self.points.loss - 1


@dataclass(frozen=True)
class Pair:
    """Two families compared."""

    first: str
    second: str
    tests: list[Test]
    differences: dict[str, Range]
    """Second less first."""


@dataclass(frozen=True)
class LeftOut:
    """A family without a law, beside others that have one."""

    name: str
    points: Points
    reason: str
    isoflop: IsoFlop


@dataclass(frozen=True)
class Analysis:
    """The whole."""

    settings: Settings
    families: list[Family]
    pairs: list[Pair]
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def measured(self) -> list[tuple[str, Points]]:
        """Name and runs of every family, those without a law last."""
        return [(f.name, f.points) for f in self._all]

    @property
    def minima(self) -> list[tuple[str, Parabola]]:
        """Name of the family and isoFLOP minimum, of every one with a minimum."""
        return [(f.name, p) for f in self._all for p in f.isoflop.minima]

    @property
    def _all(self) -> "list[Family | LeftOut]":
        return [*self.families, *self.left_out]


def analyse(points: Points, settings: Settings) -> Analysis:
    """Fit every family, bound what its law says, compare each two.

    A family of too few runs, or whose loss does not fall with size or data, has no law; it is named
    with the reason, and the others go on.

    Args:
        points: of any number of families.
        settings: of the fits.

    Raises:
        UserError: no family has a law.
    """
    families, left_out = [], []
    for name in points.families:
        own = points.of(name)
        try:
            families.append(_family(own, settings))
        except NoLaw as error:
            left_out.append(LeftOut(name, own, str(error), isoflop(own)))
    if not families:
        raise UserError(left_out[0].reason)
    pairs = [
        Pair(
            one.name,
            two.name,
            compare(one.points, two.points, settings.fit, settings.draws, settings.seed),
            differences(one.bootstrap, two.bootstrap),
        )
        for one, two in combinations(families, 2)
        if settings.draws
    ]
    return Analysis(settings, families, pairs, left_out)


def _family(points: Points, settings: Settings) -> Family:
    name = points.families[0]
    try:
        check(points, named(name))
    except UserError as error:
        raise NoLaw(str(error)) from None
    best = fit(points, settings.fit)
    k = points.flops_per_pair
    optimum = Optimum(best.law, k)
    seed = _own_seed(name, settings)
    draws = bootstrap(best, settings.fit.delta, points.run, settings.resamples, seed)
    refuse_without_law(best, draws, named(name))
    if not is_affordable(optimum, max(*settings.targets, *points.params)):
        raise NoLaw(
            f"{named(name)}: what size adds ends within the runs (alpha {best.law.alpha:.3g}), so "
            f"no budget below {MOST_FLOPS:.0e} FLOPs makes the sizes to extrapolate to the best; "
            "expected runs in which the largest models gain from more tokens as smaller ones do"
        )
    intervals = {c: draws.interval(attrgetter(c)) for c in COEFFICIENTS}
    intervals |= {w: draws.interval(of_optimum(k, w)) for w in ("a", "b", "G")}
    held_out, note = hold_out(points, settings.fit)
    return Family(
        name,
        points,
        best,
        draws,
        optimum,
        intervals,
        judge(best, points, settings.fit, seed),
        held_out,
        note,
        isoflop(points, best, draws, seed),
        _extrapolations(settings, optimum, draws),
    )


def is_affordable(optimum: Optimum, params: float) -> bool:
    """Whether some compute below :data:`MOST_FLOPS` makes that size the best one.

    The A of a steep law is past floats, infinite, and the compute then comes out as none.
    """
    with np.errstate(over="ignore"):
        return bool(0 < optimum.flops(params) < MOST_FLOPS)


def _own_seed(name: str, settings: Settings) -> int:
    """One for each family: their refits are to be independent of one another."""
    return settings.seed + zlib.crc32(name.encode())


def _extrapolations(settings: Settings, optimum: Optimum, draws: Bootstrap) -> list[Extrapolation]:
    with np.errstate(over="ignore", invalid="ignore"):
        return [e for target in settings.targets for e in _extrapolate(target, optimum, draws)]


def _extrapolate(params: float, optimum: Optimum, draws: Bootstrap) -> list[Extrapolation]:
    """What the law says of one size; compute past any number is infinite, and so not known."""
    k = optimum.flops_per_pair
    optima = [Optimum(laws[0], k) for laws in draws.laws]
    fixed = TOKENS_PER_PARAMETER * params
    losses = np.array([float(o.law.loss(params, fixed)) for o in optima])
    flops = float(optimum.flops(params))
    tokens = flops / (k * params)
    budgets = np.array([float(o.flops(params)) if o.exists else np.nan for o in optima])
    at_best = np.array([float(o.law.loss(params, tokens)) for o in optima])
    return [
        Extrapolation(
            "optimal",
            params,
            tokens,
            flops,
            float(optimum.law.loss(params, tokens)),
            draws.between(budgets / (k * params)),
            draws.between(budgets),
            draws.between(at_best),
        ),
        Extrapolation(
            f"{TOKENS_PER_PARAMETER:g} per parameter",
            params,
            fixed,
            k * params * fixed,
            float(optimum.law.loss(params, fixed)),
            None,
            None,
            draws.between(losses),
        ),
    ]


def as_dict(analysis: Analysis) -> dict[str, Any]:
    """fit.json: every figure by name; the coefficients of an only family also at the top."""
    settings = analysis.settings
    families = {family.name: _family_dict(family) for family in analysis.families}
    only = next(iter(families.values())) if len(families) == 1 else {}
    figures = only | {
        "law": "L(N, D) = E + A / N^alpha + B / D^beta, nats per token",
        "settings": {
            "huber_delta": settings.fit.delta,
            "objective": "sum over rows of the Huber loss of log predicted less log measured loss",
            "grid": settings.fit.grid,
            "shared_exponent": settings.fit.shared_exponent,
            "bootstrap": settings.resamples,
            "interval_level": LEVEL,
            "test_draws": settings.draws,
            "seed": settings.seed,
        },
        "families": families,
        "left_out": {
            left.name: {"reason": left.reason, "isoflop": _isoflop_dict(left.isoflop)}
            for left in analysis.left_out
        },
        "comparisons": [
            {
                "first": pair.first,
                "second": pair.second,
                "tests": [
                    {"hypothesis": t.hypothesis, "statistic": t.statistic, "p": t.p}
                    for t in pair.tests
                ],
                "difference_intervals": pair.differences,
            }
            for pair in analysis.pairs
        ],
    }
    known: dict[str, Any] = _known(figures)
    return known


def _known(value: Any) -> Any:
    """JSON has no numbers that are infinite or none: what is not known is null."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _family_dict(family: Family) -> dict[str, Any]:
    fitted, points, optimum, held = family.fit, family.points, family.optimum, family.held_out
    return fitted.law.as_dict() | {
        "objective": fitted.objective,
        "mean_error": family.error,
        "largest_error": family.worst,
        "rows": len(points),
        "runs": len(np.unique(points.run)),
        "params_range": [float(points.params.min()), float(points.params.max())],
        "tokens_range": [float(points.tokens.min()), float(points.tokens.max())],
        "descent": {
            "starts": fitted.starts,
            "starts_at_minimum": fitted.met,
            "largest_gradient_over_delta": fitted.gradient,
            "longest": fitted.steps,
        },
        "warnings": fitted.warnings,
        "intervals": family.intervals,
        "verdict": _verdict_dict(family),
        "optimum": {
            "a": optimum.a,
            "b": optimum.b,
            "G": optimum.G,
            "flops_per_parameter_and_token": optimum.flops_per_pair,
        },
        "held_out": {"error": None, "note": family.held_out_note}
        if held is None
        else {
            "error": held.mean_error,
            "bias": held.bias,
            "error_on_fitted": held.fitted_error,
            "law": held.law.as_dict(),
            "rows": [
                {"params": n, "tokens": d, "loss": y, "predicted": predicted}
                for n, d, y, predicted in zip(
                    *(a.tolist() for a in (held.params, held.tokens, held.loss, held.predicted)),
                    strict=True,
                )
            ],
        },
        "isoflop": _isoflop_dict(family.isoflop),
        "extrapolations": [vars(e) for e in family.extrapolations],
    }


def _verdict_dict(family: Family) -> dict[str, Any]:
    verdict, points = family.verdict, family.points
    columns = (points.params, points.tokens, points.loss)
    rows = zip(*(column[verdict.outliers].tolist() for column in columns), strict=True)
    return {
        "follows": verdict.follows,
        "reasons": list(verdict.reasons),
        "errors_run_with_size_p": verdict.trend,
        "outliers": [{"params": n, "tokens": d, "loss": y} for n, d, y in rows],
        "law_without_outliers": None if verdict.without is None else verdict.without.as_dict(),
    }


def _isoflop_dict(fits: IsoFlop) -> dict[str, Any]:
    return {
        "a": fits.a,
        "b": fits.b,
        "a_interval": fits.a_interval,
        "bias_taken_off": fits.bias,
        "note": fits.note,
        "minima": [{"flops": p.flops, "params": p.params, "loss": p.loss} for p in fits.minima],
    }
