"""The analysis of one set of runs: a law for each family, and how the families differ."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from operator import attrgetter

import numpy as np

from gam_scale.errors import UserError
from gam_scale.report.numbers import Range
from gam_scale.scaling.bootstrap import (
    RESAMPLES,
    Bootstrap,
    bootstrap,
    of_optimum,
)
from gam_scale.scaling.by_steps import WithoutShort, by_steps
from gam_scale.scaling.columns import other_counts, with_min_steps
from gam_scale.scaling.compare import DRAWS, Test, compare, differences
from gam_scale.scaling.extrapolation import Extrapolation, Model, at_size, predict, sizes_beyond
from gam_scale.scaling.fit import Fit, FitSettings, fit
from gam_scale.scaling.holdout import HeldOut, hold_out
from gam_scale.scaling.isoflop import IsoFlop, Parabola, isoflop
from gam_scale.scaling.law import COEFFICIENTS
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points, check, named
from gam_scale.scaling.verdict import NoLaw, Verdict, judge, refuse_without_law, scatter

Tell = Callable[[str], None]
"""A function that shows the waiting user a line on the progress."""
MOST_FLOPS = 1e60
"""Upper bound on the compute at which a target size may be the best one. A law that needs more
says that size no longer matters: its family is reported as one without a law."""


@dataclass(frozen=True)
class Settings:
    """Settings of an analysis."""

    fit: FitSettings = field(default_factory=FitSettings)
    resamples: int = RESAMPLES
    """Number of refits behind the intervals; 0: no intervals."""
    draws: int = DRAWS
    """Number of simulated data sets behind each test of two families; 0: no tests."""
    seed: int = 0
    targets: tuple[float, ...] = ()
    """Parameters of the models to extrapolate to; empty: see :func:`sizes_beyond`."""
    at: tuple[Model, ...] = ()
    """Further models to extrapolate to."""
    held: str = "sizes"
    """Which runs are held out, see :func:`gam_scale.scaling.holdout.hold_out`."""
    min_steps: int = 0
    """Runs of fewer optimizer steps are left out."""


@dataclass(frozen=True)
class Family:
    """The analysis of one family, a kind of model whose runs have a law."""

    name: str
    points: Points
    fit: Fit
    bootstrap: Bootstrap
    optimum: Optimum
    intervals: dict[str, Range]
    """By name, intervals of the coefficients and of the optimum's ``a``, ``b`` and ``G``."""
    verdict: Verdict
    """Whether the runs follow the law."""
    held_out: HeldOut | None
    held_out_note: str
    isoflop: IsoFlop
    extrapolations: list[Extrapolation]
    without_short: list[WithoutShort]
    """Laws without runs of few steps, from all runs, even those that ``min_steps`` leaves out."""
    by_count: dict[str, Fit]
    """Fits with other counts of N, by the name of the column."""

    @property
    def farthest(self) -> float:
        """Most FLOPs of any run or known extrapolation, up to which the law is shown."""
        known = [e.flops for e in self.extrapolations if e.is_known]
        return max([float(self.points.flops.max()), *known])

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
    """The comparison of two families."""

    first: str
    second: str
    tests: list[Test]
    differences: dict[str, Range]
    """By quantity, the interval of the second family's value minus the first's."""


@dataclass(frozen=True)
class LeftOut:
    """A family without a law, beside others that have one."""

    name: str
    points: Points
    reason: str
    isoflop: IsoFlop


@dataclass(frozen=True)
class Analysis:
    """The whole analysis: families with a law, their comparisons, and families without a law."""

    settings: Settings
    families: list[Family]
    pairs: list[Pair]
    left_out: list[LeftOut] = field(default_factory=list)
    too_short: int = 0
    """Number of runs left out for their few steps."""

    @property
    def measured(self) -> list[tuple[str, Points]]:
        """Name and runs of every family that has any; families without a law come last."""
        return [(f.name, f.points) for f in self._all if len(f.points)]

    @property
    def minima(self) -> list[tuple[str, Parabola]]:
        """All isoFLOP minima, each with the name of its family."""
        return [(f.name, p) for f in self._all for p in f.isoflop.minima]

    @property
    def _all(self) -> "list[Family | LeftOut]":
        return [*self.families, *self.left_out]


def analyse(points: Points, settings: Settings, tell: Tell = lambda _: None) -> Analysis:
    """Fit every family, compute intervals of its law, and compare every two families.

    A family of too few runs, or whose loss does not fall with size or data, has no law; it is
    listed in ``left_out`` with the reason.

    Args:
        points: runs of any number of families.
        settings: settings of the analysis.
        tell: called with a line before each piece of work.

    Raises:
        UserError: no family has a law.
    """
    whole, points = points, with_min_steps(points, settings.min_steps)
    fitted, left_out = dict[str, _Fitted](), list[LeftOut]()
    for i, name in enumerate(points.families, 1):
        own = points.of(name)
        tell(f"family {i} of {len(points.families)}: {name}, {len(own)} runs")
        try:
            fitted[name] = _fitted(own, settings)
        except NoLaw as error:
            left_out.append(LeftOut(name, own, str(error), isoflop(own)))
    targets = settings.targets
    while fitted:
        largest = min(float(points.of(name).params.max()) for name in fitted)
        targets = settings.targets or sizes_beyond(largest)
        refused = {name: why for name, one in fitted.items() if (why := one.unaffordable(targets))}
        for name, why in refused.items():
            del fitted[name]
            left_out.append(LeftOut(name, points.of(name), why, isoflop(points.of(name))))
        if not refused:
            break
    if not fitted:
        raise UserError(left_out[0].reason)
    settings = replace(settings, targets=targets)
    families = [_family(one, whole.of(name), settings) for name, one in fitted.items()]
    pairs = _compare(families, settings, tell) if settings.draws else []
    left_out += [
        _without_runs(whole.of(name), settings.min_steps)
        for name in whole.families
        if name not in points.families
    ]
    return Analysis(settings, families, pairs, left_out, len(whole) - len(points))


def _without_runs(whole: Points, min_steps: int) -> LeftOut:
    """Return a family all of whose runs are too short, with the reason and without the runs."""
    (name,) = whole.families
    reason = (
        f"{named(name)}: none of its {len(whole)} runs has {min_steps:,} optimizer steps, so "
        "--min-steps leaves all of them out"
    )
    nothing = whole.take(np.zeros(len(whole), bool))
    return LeftOut(name, nothing, reason, IsoFlop([], None, None, None, None, ""))


def _compare(families: list[Family], settings: Settings, tell: Tell) -> list[Pair]:
    pairs: list[Pair] = []
    count = math.comb(len(families), 2)
    for one, two in combinations(families, 2):
        tell(f"comparison {len(pairs) + 1} of {count}: {one.name} and {two.name}")
        tests = compare(one.points, two.points, settings.fit, settings.draws, settings.seed)
        pairs.append(Pair(one.name, two.name, tests, differences(one.bootstrap, two.bootstrap)))
    return pairs


@dataclass(frozen=True)
class _Fitted:
    """The fit of one family whose runs show both exponents."""

    points: Points
    fit: Fit
    refits: Bootstrap
    optimum: Optimum

    def unaffordable(self, targets: tuple[float, ...]) -> str:
        """Return why a target is the best size for no budget; empty if it is for some."""
        if is_affordable(self.optimum, max(*targets, *self.points.params)):
            return ""
        return (
            f"{named(self.points.families[0])}: what size adds ends within the runs (alpha "
            f"{self.fit.law.alpha:.3g}), so no budget below {MOST_FLOPS:.0e} FLOPs makes the sizes "
            "to extrapolate to the best; expected runs in which the largest models gain from more "
            "tokens as smaller ones do"
        )


def _fitted(points: Points, settings: Settings) -> _Fitted:
    """Fit the law of one family, or refuse with :class:`NoLaw`."""
    name = points.families[0]
    try:
        check(points, named(name), settings.fit.shared_exponent)
    except UserError as error:
        raise NoLaw(str(error)) from None
    best = fit(points, settings.fit)
    seed = _own_seed(name, settings)
    refits = bootstrap(best, settings.fit.delta, points.run, settings.resamples, seed)
    refuse_without_law(best, refits, named(name))
    return _Fitted(points, best, refits, Optimum(best.law, points.flops_per_pair))


def _family(fitted: _Fitted, whole: Points, settings: Settings) -> Family:
    """Analyse one family further; ``whole`` also has its runs of too few steps."""
    points, best, refits, optimum = fitted.points, fitted.fit, fitted.refits, fitted.optimum
    (name,), k = points.families, optimum.flops_per_pair
    seed = _own_seed(name, settings)
    intervals = {c: refits.interval(attrgetter(c)) for c in COEFFICIENTS}
    intervals |= {w: refits.interval(of_optimum(k, w)) for w in ("a", "b", "G")}
    held_out, note = hold_out(points, settings.fit, settings.held)
    sizes = [e for target in settings.targets for e in at_size(target, optimum, refits)]
    return Family(
        name,
        points,
        best,
        refits,
        optimum,
        intervals,
        judge(best, points, settings.fit, seed, held_out),
        held_out,
        note,
        isoflop(points, best, refits, seed),
        [
            *sizes,
            *(
                predict(model.params, model.tokens, optimum, refits, scatter=scatter(best))
                for model in settings.at
                if model.family in ("", name)
            ),
        ],
        by_steps(whole, settings.fit),
        {
            name: fit(replace(points, params=count), settings.fit)
            for name, count in other_counts(points).items()
        },
    )


def is_affordable(optimum: Optimum, params: float) -> bool:
    """Return whether some compute below :data:`MOST_FLOPS` makes ``params`` the best size.

    The A of a steep law overflows to infinity, and the compute then comes out as 0.
    """
    with np.errstate(over="ignore"):
        return bool(0 < optimum.flops(params) < MOST_FLOPS)


def _own_seed(name: str, settings: Settings) -> int:
    """Return a seed for each family, so that the families' refits are independent."""
    return settings.seed + zlib.crc32(name.encode())
