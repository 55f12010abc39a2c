"""The best size of each budget, read off the runs by a parabola (arXiv 2203.15556, section 3.2)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gam_scale.scaling.bootstrap import LEVEL, Bootstrap
from gam_scale.scaling.budgets import SIZES, budgets
from gam_scale.scaling.fit import Fit
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points

NEAREST = 5
"""Sizes that a parabola goes through, those nearest the least loss, on either side of it: a law's
curve is none, and the further a size is from the minimum, the more it draws the parabola aside."""
LEAST_SPAN = 4.0  # times the smallest size that the largest of a budget must be for a parabola
MINIMA = 2  # a power law needs


@dataclass(frozen=True)
class Parabola:
    """loss = c0 + c1 x + c2 x^2 with x = log N - ``middle``, over the runs of one budget."""

    flops: float
    coefficients: tuple[float, float, float]
    """c2, c1, c0."""
    middle: float
    rows: np.ndarray
    """Which of the points spent the budget."""
    low: float
    high: float
    """The smallest and largest N that the parabola goes through."""
    at_end: bool
    """Whether the budget's least loss is that of its smallest or largest size."""

    @property
    def params(self) -> float:
        """N at the minimum; nan where there is none."""
        c2, c1, _ = self.coefficients
        with np.errstate(over="ignore"):
            return float(np.exp(self.middle - c1 / (2 * c2))) if c2 > 0 else float("nan")

    @property
    def is_inside(self) -> bool:
        """Whether the minimum lies between sizes that were trained, rather than beyond them."""
        return not self.at_end and self.low < self.params < self.high

    @property
    def loss(self) -> float:
        """Nats per token at the minimum."""
        return float(self.at(self.params))

    def at(self, params: float | np.ndarray) -> np.ndarray:
        """Nats per token of the parabola at N parameters."""
        return np.polyval(self.coefficients, np.log(params) - self.middle)


@dataclass(frozen=True)
class IsoFlop:
    """Parabolas of every budget, and the power laws N* ~ C^a and D* ~ C^b of their minima."""

    parabolas: list[Parabola]
    a: float | None
    """Less the ``bias``, where that is known."""
    b: float | None
    a_interval: tuple[float, float] | None
    bias: float | None
    """By how much parabolas through runs of the fitted law miss its own exponent."""
    note: str
    """Why something is missing, or empty."""

    @property
    def minima(self) -> list[Parabola]:
        """Those whose minimum lies between trained sizes."""
        return [p for p in self.parabolas if p.is_inside]


@dataclass(frozen=True)
class _Budget:
    """The runs of one budget, and the parabolas through every :data:`NEAREST` of its sizes."""

    flops: float
    rows: np.ndarray
    x: np.ndarray
    """(m,) log N of the rows."""

    @cached_property
    def sizes(self) -> np.ndarray:
        """(s,) log N, ascending."""
        return np.unique(self.x)

    @cached_property
    def mean(self) -> np.ndarray:
        """(s, m): ``mean @ loss`` is the mean loss of each size."""
        same = (self.sizes[:, None] == self.x).astype(float)
        return same / same.sum(axis=1, keepdims=True)

    def window(self, least: int, count: int) -> np.ndarray:
        """(m,) whether a row is of the ``count`` sizes nearest to size ``least``.

        Its two neighbours are among them however far they are: the minimum lies between these.
        """
        distance = np.abs(self.sizes - self.sizes[least])
        distance[max(0, least - 1) : least + 2] = 0
        near = self.sizes[np.argsort(distance, kind="stable")[:count]]
        return np.isin(self.x, near)

    def solution(self, least: int, count: int) -> tuple[np.ndarray, float, np.ndarray]:
        """(3, m) by which losses give c2, c1, c0 of the parabola there; its middle; its rows."""
        inside = self.window(least, count)
        middle = float(self.x[inside].mean())
        powers = np.vander(self.x[inside] - middle, 3)
        solved = np.zeros((3, len(self.x)))
        solved[:, inside] = np.linalg.pinv(powers)
        return solved, middle, inside

    def minima(self, loss: np.ndarray) -> np.ndarray:
        """(K,) log N at the minima of losses (K, m); nan where the least loss is at an end."""
        least = (loss @ self.mean.T).argmin(axis=1)
        found = np.full(len(loss), np.nan)
        for at in range(1, len(self.sizes) - 1):
            chosen = np.flatnonzero(least == at)
            for count in (NEAREST, SIZES) if len(chosen) else ():
                solved, middle, inside = self.solution(at, count)
                c2, c1, _ = solved @ loss[chosen].T
                with np.errstate(divide="ignore", invalid="ignore"):
                    best = middle - c1 / (2 * c2)
                low, high = self.x[inside].min(), self.x[inside].max()
                good = (c2 > 0) & (best > low) & (best < high)
                found[chosen[good]] = best[good]
                chosen = chosen[~good]
        return found

    def parabola(self, loss: np.ndarray) -> Parabola:
        """Through the losses (m,) of the rows."""
        least = int((self.mean @ loss).argmin())
        at_end = least in (0, len(self.sizes) - 1)
        for count in (NEAREST, SIZES):
            solved, middle, inside = self.solution(least, count)
            c2, c1, c0 = (float(c) for c in solved @ loss)
            low, high = (float(np.exp(end)) for end in (self.x[inside].min(), self.x[inside].max()))
            made = Parabola(self.flops, (c2, c1, c0), middle, self.rows, low, high, at_end)
            if at_end or made.is_inside:
                break
        return made


def isoflop(
    points: Points,
    fitted: Fit | None = None,
    draws: Bootstrap | None = None,
    seed: int = 0,
    level: float = LEVEL,
) -> IsoFlop:
    """Minima of the runs of one family, grouped by the FLOPs that they spent.

    A law's curve over log N is steeper on one side, so that parabolas miss its minima, the more so
    where all budgets were spent on the same sizes. By how much is simulated: the laws of a
    bootstrap, with noise as between the runs, at the sizes and tokens of the runs. The median miss
    is taken off the exponent, and the spread of it is the interval.

    Args:
        points: of one family.
        fitted: their law; None where they have none: then there is no interval.
        draws: its refits.
        seed: of the simulated noise.
        level: of the interval.
    """
    groups = budgets(points)
    if not groups:
        reason = f"No budget was spent on {SIZES} sizes: isoFLOP minima need runs of equal FLOPs."
        return IsoFlop([], None, None, None, None, reason)
    spanning = [rows for rows in groups if _span(points, rows) >= LEAST_SPAN]
    x = np.log(points.params)
    made = [_Budget(_mean_flops(points, rows), rows, x[rows]) for rows in spanning]
    parabolas = [budget.parabola(points.loss[budget.rows]) for budget in made]
    notes = _missing(len(groups), parabolas)
    if sum(p.is_inside for p in parabolas) < MINIMA:
        note = " ".join([*notes, "No exponent follows."])
        return IsoFlop(parabolas, None, None, None, None, note)
    a = float(_exponents(made, points.loss[None])[0])
    misses = None if fitted is None or draws is None else _misses(made, points, fitted, draws, seed)
    if misses is None or draws is None:
        notes.append("The isoFLOP exponent has no interval: that takes a law and its refits.")
        return IsoFlop(parabolas, a, 1 - a, None, None, " ".join(notes))
    ends = draws.between(a - misses, level)
    if ends is None:
        notes.append(
            "The isoFLOP exponent has no interval: in runs simulated from the law, too few budgets "
            "have a minimum between the sizes."
        )
        return IsoFlop(parabolas, a, 1 - a, None, None, " ".join(notes))
    bias = float(np.nanmedian(misses))
    return IsoFlop(parabolas, a - bias, 1 - a + bias, ends, bias, " ".join(notes))


def _missing(groups: int, parabolas: list[Parabola]) -> list[str]:
    """Why budgets do not count, in sentences."""
    notes = []
    if near := groups - len(parabolas):
        notes.append(
            f"{near} of {groups} budgets were spent on sizes within a factor of {LEAST_SPAN:g}, "
            "too near for a parabola."
        )
    if ends := sum(p.at_end for p in parabolas):
        notes.append(
            f"{ends} of {groups} budgets have no minimum between the sizes that were trained, and "
            "do not count: their least loss is at the smallest or the largest."
        )
    return notes


def _misses(
    made: list[_Budget], points: Points, fitted: Fit, draws: Bootstrap, seed: int
) -> np.ndarray | None:
    """(R,) exponent by parabolas less that of the law, for runs of each refitted law; None: no
    refits."""
    if not draws.laws:
        return None
    laws = [laws[0] for laws in draws.laws]
    expected = np.array([law.loss(points.params, points.tokens) for law in laws])
    noise = _noise(fitted, points.run, len(laws), seed)
    k = points.flops_per_pair
    optima = [Optimum(law, k) for law in laws]
    own = np.array([o.a if o.exists else np.nan for o in optima])
    misses: np.ndarray = _exponents(made, expected * np.exp(noise)) - own
    return misses


def _noise(fitted: Fit, run: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count, n) normal errors of log L as large as the runs' own, what a run's rows share too."""
    errors = fitted.design.residuals(fitted.phi[None])[0]
    runs, of_row, rows = np.unique(run, return_inverse=True, return_counts=True)
    variance = float((errors**2).sum()) / max(1, len(errors) - fitted.design.free)
    means = np.bincount(of_row, errors) / rows
    within = ((errors - means[of_row]) ** 2).sum() / max(1, len(errors) - len(runs))
    own = min(variance, float(within)) if len(runs) < len(errors) else variance
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, len(runs)))[:, of_row]
    return np.sqrt(variance - own) * shared + np.sqrt(own) * rng.standard_normal(
        (count, len(errors))
    )


def _exponents(made: list[_Budget], loss: np.ndarray) -> np.ndarray:
    """(K,) slope of log N* over log C for losses (K, n); nan where fewer than two budgets have a
    minimum."""
    best = np.stack([budget.minima(loss[:, budget.rows]) for budget in made])
    c = np.log([budget.flops for budget in made])[:, None]
    there = np.isfinite(best)
    count = there.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        c = np.where(there, c - (c * there).sum(axis=0) / count, 0)
        slope: np.ndarray = (c * np.where(there, best, 0)).sum(axis=0) / (c**2).sum(axis=0)
    return np.where(count >= MINIMA, slope, np.nan)


def _span(points: Points, rows: np.ndarray) -> float:
    return float(points.params[rows].max() / points.params[rows].min())


def _mean_flops(points: Points, rows: np.ndarray) -> float:
    return float(np.exp(np.log(points.flops[rows]).mean()))
