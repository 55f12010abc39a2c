"""The best size of each budget, by a parabola through its runs (arXiv 2203.15556, section 3.2)."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gam_scale.scaling.bootstrap import LEVEL, Bootstrap
from gam_scale.scaling.budgets import SIZES, budgets
from gam_scale.scaling.fit import Fit
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points

NEAREST = 5
"""Number of sizes that a parabola goes through, those nearest the least loss, on both sides of it.
A law's curve is no parabola: sizes further from the minimum would draw the fit further aside."""
LEAST_SPAN = 4.0  # least ratio of a budget's largest to its smallest size for a parabola
MINIMA = 2  # fewest minima for a power law


@dataclass(frozen=True)
class Parabola:
    """The fit loss = c0 + c1 x + c2 x^2, with x = log N - ``middle``, to the runs of one budget."""

    flops: float
    coefficients: tuple[float, float, float]
    """c2, c1, c0."""
    middle: float
    rows: np.ndarray
    """Indices of the points that spent the budget."""
    low: float
    high: float
    """The smallest and largest N that the parabola goes through."""
    at_end: bool
    """Whether the budget's least loss is that of its smallest or largest size."""

    @property
    def params(self) -> float:
        """N at the minimum; nan if there is none."""
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
        """Return the parabola's nats per token at N parameters."""
        return np.polyval(self.coefficients, np.log(params) - self.middle)


@dataclass(frozen=True)
class IsoFlop:
    """Parabolas of every budget, and the power laws N* ~ C^a and D* ~ C^b of their minima."""

    parabolas: list[Parabola]
    a: float | None
    """Exponent of N*, with the ``bias`` subtracted if that is known."""
    b: float | None
    a_interval: tuple[float, float] | None
    bias: float | None
    """Median excess of the exponent by parabolas over the law's, in runs simulated from the law."""
    note: str
    """Why a result is missing, or empty."""

    @property
    def minima(self) -> list[Parabola]:
        """The parabolas whose minimum lies between trained sizes."""
        return [p for p in self.parabolas if p.is_inside]


@dataclass(frozen=True)
class _Budget:
    """The runs of one budget, and parabolas through its sizes nearest the least loss."""

    flops: float
    rows: np.ndarray
    x: np.ndarray
    """(m,) log N of the rows."""

    @cached_property
    def sizes(self) -> np.ndarray:
        """(s,) distinct log N, ascending."""
        return np.unique(self.x)

    @cached_property
    def mean(self) -> np.ndarray:
        """(s, m) matrix: ``mean @ loss`` is the mean loss of each size."""
        same = (self.sizes[:, None] == self.x).astype(float)
        return same / same.sum(axis=1, keepdims=True)

    def window(self, least: int, count: int) -> np.ndarray:
        """Return a mask (m,) of the rows of the ``count`` sizes nearest to that of index ``least``.

        The two neighbours of that size are always among them: the minimum lies between these.
        """
        distance = np.abs(self.sizes - self.sizes[least])
        distance[max(0, least - 1) : least + 2] = 0
        near = self.sizes[np.argsort(distance, kind="stable")[:count]]
        return np.isin(self.x, near)

    def solution(self, least: int, count: int) -> tuple[np.ndarray, float, np.ndarray]:
        """Return how to fit a parabola about the size of index ``least``.

        The result is the matrix (3, m) from losses to c2, c1 and c0, the middle, and the mask (m,)
        of the parabola's rows.
        """
        inside = self.window(least, count)
        middle = float(self.x[inside].mean())
        powers = np.vander(self.x[inside] - middle, 3)
        solved = np.zeros((3, len(self.x)))
        solved[:, inside] = np.linalg.pinv(powers)
        return solved, middle, inside

    def minima(self, loss: np.ndarray) -> np.ndarray:
        """Return log N (K,) at the minima of losses (K, m); nan without a minimum between sizes."""
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
        """Return the parabola through the losses (m,) of the rows."""
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
    refits: Bootstrap | None = None,
    seed: int = 0,
    level: float = LEVEL,
) -> IsoFlop:
    """Return the minima of one family's runs, grouped by their budgets of FLOPs.

    A law's curve over log N is steeper on one side, so parabolas miss its minima, the more so if
    all budgets were spent on the same sizes. The miss of the exponent is simulated: the laws of a
    bootstrap give losses at the runs' sizes and tokens, with noise as between the runs. The median
    miss is subtracted from the exponent, and the spread of the misses gives the interval.

    Args:
        points: runs of one family.
        fitted: the fit of their law; None if they have none: then there is no interval.
        refits: the law, refitted to reweighted runs.
        seed: seed of the simulated noise.
        level: level of the interval.
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
    misses = (
        None if fitted is None or refits is None else _misses(made, points, fitted, refits, seed)
    )
    if misses is None or refits is None:
        notes.append("The isoFLOP exponent has no interval: that takes a law and its refits.")
        return IsoFlop(parabolas, a, 1 - a, None, None, " ".join(notes))
    ends = refits.between(a - misses, level)
    if ends is None:
        notes.append(
            "The isoFLOP exponent has no interval: in runs simulated from the law, too few budgets "
            "have a minimum between the sizes."
        )
        return IsoFlop(parabolas, a, 1 - a, None, None, " ".join(notes))
    bias = float(np.nanmedian(misses))
    return IsoFlop(parabolas, a - bias, 1 - a + bias, ends, bias, " ".join(notes))


def _missing(groups: int, parabolas: list[Parabola]) -> list[str]:
    """Return sentences on why budgets do not count."""
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
    made: list[_Budget], points: Points, fitted: Fit, refits: Bootstrap, seed: int
) -> np.ndarray | None:
    """Return the exponent by parabolas minus the law's own (R,), for runs of each refitted law.

    The result is None if there are no refits.
    """
    if not refits.laws:
        return None
    laws = [laws[0] for laws in refits.laws]
    expected = np.array([law.loss(points.params, points.tokens) for law in laws])
    noise = _noise(fitted, points.run, len(laws), seed)
    k = points.flops_per_pair
    optima = [Optimum(law, k) for law in laws]
    own = np.array([o.a if o.exists else np.nan for o in optima])
    misses: np.ndarray = _exponents(made, expected * np.exp(noise)) - own
    return misses


def _noise(fitted: Fit, run: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return normal errors of log L (count, n) as large as the runs' own.

    The part of an error that the rows of one run share is also as large as theirs.
    """
    errors = fitted.design.residuals(fitted.phi[None])[0]
    runs, of_row, rows = np.unique(run, return_inverse=True, return_counts=True)
    variance = float((errors**2).sum()) / max(1, len(errors) - fitted.design.n_free)
    means = np.bincount(of_row, errors) / rows
    within = ((errors - means[of_row]) ** 2).sum() / max(1, len(errors) - len(runs))
    own = min(variance, float(within)) if len(runs) < len(errors) else variance
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((count, len(runs)))[:, of_row]
    return np.sqrt(variance - own) * shared + np.sqrt(own) * rng.standard_normal(
        (count, len(errors))
    )


def _exponents(made: list[_Budget], loss: np.ndarray) -> np.ndarray:
    """Return the slope (K,) of log N* over log C for losses (K, n).

    The slope is nan if fewer than two budgets have a minimum.
    """
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
