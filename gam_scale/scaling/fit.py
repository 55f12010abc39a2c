"""Fit the law nearest to the runs, by a descent from every start of a grid."""

from dataclasses import dataclass, replace

import numpy as np

from gam_scale.errors import UserError
from gam_scale.scaling.descent import FLAT, Minimum, minimise
from gam_scale.scaling.law import Design, Law
from gam_scale.scaling.points import Points

DELTA = 1e-3  # arXiv 2203.15556, appendix D.3
GRID = 5
EXPONENTS = (0.08, 1.3)  # range of the starts; published exponents are 0.28 to 0.45
FLOOR = (0.15, 0.97)  # range of E in the starts, as shares of the lowest loss
CHUNK = 200_000  # most losses that one evaluation predicts
SAME = 1e-6  # relative difference of objectives below which two descents met
TIE = 1e-9  # relative difference below which two objectives are equal but for rounding
SAMPLE = 400  # most runs of a family in the descents from all starts
ENDS = 6  # most ends of these descents that then descend on all runs
RIVAL = 2.0  # times the least objective, up to which another valley may win a resample
STIFFNESS = 10.0  # of the quadratic walls at the bounds of phi, in objectives over delta


@dataclass(frozen=True)
class FitSettings:
    """Settings of a fit."""

    delta: float = DELTA
    """Residual of log L at which the Huber loss goes from squares to absolute values."""
    grid: int = GRID
    """Number of starts along each of E, alpha and beta; every combination is a start."""
    shared_exponent: bool = False
    """Whether alpha = beta."""

    def __post_init__(self) -> None:
        if not 0 < self.delta < float("inf"):
            raise UserError(f"--huber-delta is {self.delta:g}; expected a number above 0")
        if not 1 <= self.grid <= 20:
            raise UserError(f"--grid is {self.grid}; expected 1 to 20 starts for each dimension")


@dataclass(frozen=True)
class Fit:
    """Laws of one or more families, fitted together."""

    design: Design
    laws: list[Law]
    phi: np.ndarray
    """(P,) the minimum; see :class:`Design`."""
    objective: float
    """Summed Huber loss on log L."""
    gradient: float
    """Largest component of the objective's gradient, over delta."""
    starts: int
    starts_at_minimum: int
    """Number of starts that ended at the least objective."""
    steps: int
    """Steps of the longest descent."""
    others: np.ndarray
    """(m, P) ends of the best few descents, from which a bootstrap starts."""
    inverse: np.ndarray
    """(m, P, P) inverse Hessians at ``others``."""

    @property
    def law(self) -> Law:
        """The law of the only family."""
        return self.laws[0]

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the coefficients, in words."""
        warnings = []
        for f, law in enumerate(self.laws):
            lowest = self.design.loss[self.design.family == f].min()
            if law.E / lowest < 1e-3:
                warnings.append("E is practically zero: the runs do not show where the loss ends")
        if self.starts_at_minimum < 2 and self.starts > 1:
            warnings.append("only one start reached the minimum: try a larger grid")
        return warnings


def design(points: Points, settings: FitSettings, common: tuple[str, ...] = ()) -> Design:
    """Return the design of a fit to every family in ``points``, which share ``common``."""
    names = points.families
    family = np.array([names.index(name) for name in points.family], int)
    return Design(
        points.params, points.tokens, points.loss, family, settings.shared_exponent, common
    )


def fit(points: Points, settings: FitSettings, common: tuple[str, ...] = ()) -> Fit:
    """Fit the families together, and return the best of the descents from the grid's starts."""
    return fit_design(design(points, settings, common), settings)


def fit_design(made: Design, settings: FitSettings) -> Fit:
    """Fit a design; see :func:`fit`.

    A sample of many runs is enough to find the valleys of the objective. Only the descents to the
    ends of these valleys need all runs.
    """
    rows = _sample(made)
    small = made if len(rows) == len(made.loss) else _take(made, rows)
    begun = descend(small, settings.delta, starts(small, settings.grid))
    order, at_minimum = _ranked(small, begun)
    if small is made:
        end = begun
    else:
        chosen = _distinct(begun, order, ENDS, np.inf)
        start = np.array([made.phi(small.laws(phi)) for phi in begun.x[chosen]])
        end = descend(made, settings.delta, start)
        order, _ = _ranked(made, end)
    best = int(order[0])
    others = _distinct(end, order, 3, RIVAL)
    return Fit(
        made,
        made.laws(end.x[best]),
        end.x[best],
        float(end.value[best] * settings.delta),
        float(end.gradient[best]),
        len(begun.value),
        at_minimum,
        max(begun.steps, end.steps),
        end.x[others],
        end.inverse[others],
    )


def descend(
    made: Design,
    delta: float,
    start: np.ndarray,
    weights: np.ndarray | None = None,
    log_loss: np.ndarray | None = None,
    inverse: np.ndarray | None = None,
    flat: float = FLAT,
) -> Minimum:
    """Minimise the objective over delta, which makes values about 1, from ``start`` (K, P).

    ``weights`` (K, n) say how often each descent counts each run, and ``log_loss`` (K, n) replaces
    the measured losses. For ``inverse`` (K, P, P) and ``flat`` see :func:`minimise`. Walls keep
    descents within the design's bounds, or hardly beyond.
    """
    size = max(1, CHUNK // len(made.loss))
    low, high = made.bounds
    ends = []
    for first in range(0, len(start), size):
        part = slice(first, first + size)
        replaced = [None if a is None else a[part] for a in (weights, log_loss)]

        def scaled(
            phi: np.ndarray, index: np.ndarray, data: list[np.ndarray | None] = replaced
        ) -> tuple[np.ndarray, np.ndarray]:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                rows = [None if a is None else a[index] for a in data]
                value, gradient = made.objective(phi, delta, *rows)
                beyond = phi - np.clip(phi, low, high)
                value = value / delta + STIFFNESS * (beyond**2).sum(axis=1)
                return value, gradient / delta + 2 * STIFFNESS * beyond

        known = None if inverse is None else inverse[part]
        ends.append(minimise(scaled, start[part], inverse=known, flat=flat))
    names = ("x", "value", "gradient", "finished", "inverse")
    x, value, gradient, finished, curvature = (
        np.concatenate([getattr(end, name) for end in ends]) for name in names
    )
    return Minimum(x, value, gradient, max(end.steps for end in ends), finished, curvature)


def starts(made: Design, grid: int) -> np.ndarray:
    """Return a grid of points over E, alpha and beta; given those, least squares set A and B.

    There are (grid^3, P) points, or (grid^2, P) if alpha = beta.
    """
    middle = [float(np.sqrt(np.prod(EXPONENTS)))]
    exponents = np.geomspace(*EXPONENTS, grid) if grid > 1 else np.array(middle)
    floors = np.linspace(*FLOOR, grid) if grid > 1 else np.array([np.mean(FLOOR)])
    points = [
        made.phi([_start(made, f, e, a, b) for f in range(made.n_families)])
        for e in floors
        for a in exponents
        for b in exponents
        if not made.shared_exponent or a == b
    ]
    return np.array(points)


def _start(made: Design, family: int, floor: float, alpha: float, beta: float) -> Law:
    rows = made.family == family
    n, d, loss = made.params[rows], made.tokens[rows], made.loss[rows]
    e = floor * float(loss.min())
    # Relative to the centre, both columns are about 1, so that least squares is well conditioned.
    x = np.exp(-alpha * (np.log(n) - made.centre[0]))
    y = np.exp(-beta * (np.log(d) - made.centre[1]))
    a, b = np.linalg.lstsq(np.stack([x, y], axis=1), loss - e, rcond=None)[0]
    least = 0.05 * float((loss - e).mean())
    a, b = max(float(a), least), max(float(b), least)
    return Law(
        e, a * np.exp(alpha * made.centre[0]), b * np.exp(beta * made.centre[1]), alpha, beta
    )


def _sample(made: Design) -> np.ndarray:
    """Return at most :data:`SAMPLE` random rows of each family, the same ones in every call."""
    rng = np.random.default_rng(0)
    families = (np.flatnonzero(made.family == f) for f in range(made.n_families))
    return np.sort(np.concatenate([rng.permutation(rows)[:SAMPLE] for rows in families]))


def _take(made: Design, rows: np.ndarray) -> Design:
    names = ("params", "tokens", "loss", "family")
    return replace(made, **{name: getattr(made, name)[rows] for name in names})


def _ranked(made: Design, end: Minimum) -> tuple[np.ndarray, int]:
    """Return descents from the best to the worst, and how many ended at the least objective.

    Which of several tied descents is lower by a last bit is chance. So that the order is the same
    on every machine, the one with the flattest law comes first.
    """
    value = np.where(np.isfinite(end.value), end.value, np.inf)
    least, scale = value.min(), max(abs(value.min()), 1e-12)
    tied = value <= least + TIE * scale
    steepest = np.round(np.abs(end.x[:, made.places[:, 3:].ravel()]).max(axis=1), 3)
    order = np.lexsort((np.arange(len(value)), np.where(tied, steepest, value), ~tied))
    return order, int((value <= least + SAME * scale).sum())


def _distinct(end: Minimum, order: np.ndarray, most: int, rival: float) -> list[int]:
    """Return up to ``most`` of the best ends, one of each objective.

    Another valley than the best may be the deepest of a resample. Ends whose objective is above
    ``rival`` times the least one are left out.
    """
    chosen = [int(order[0])]
    least = end.value[order[0]]
    for i in map(int, order[1:]):
        last = end.value[chosen[-1]]
        apart = end.value[i] > last + 1e-3 * max(abs(last), 1e-12)
        if len(chosen) < most and apart and end.value[i] <= rival * least:
            chosen.append(i)
    return chosen
