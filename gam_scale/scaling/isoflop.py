"""The best size of each budget, read off the runs by a parabola (arXiv 2203.15556, section 3.2)."""

from dataclasses import dataclass

import numpy as np

from gam_scale.scaling.points import Points

SPREAD = 0.1  # relative difference of FLOPs within which runs spent one budget
SIZES = 3  # a parabola needs
MINIMA = 2  # a power law needs


@dataclass(frozen=True)
class Parabola:
    """loss = c0 + c1 x + c2 x^2 with x = log N - ``middle``, over the runs of one budget."""

    flops: float
    coefficients: tuple[float, float, float]
    """c2, c1, c0."""
    middle: float
    rows: np.ndarray
    """Which of the points it was fitted to."""
    low: float
    high: float
    """The smallest and largest N of them."""

    @property
    def params(self) -> float:
        """N at the minimum; nan where there is none."""
        c2, c1, _ = self.coefficients
        with np.errstate(over="ignore"):
            return float(np.exp(self.middle - c1 / (2 * c2))) if c2 > 0 else float("nan")

    @property
    def found(self) -> bool:
        """Whether the minimum lies between sizes that were trained, rather than beyond them."""
        return self.low < self.params < self.high

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
    b: float | None
    a_interval: tuple[float, float] | None
    note: str
    """Why something is missing, or empty."""

    @property
    def minima(self) -> list[Parabola]:
        """Those whose minimum lies between trained sizes."""
        return [p for p in self.parabolas if p.found]


def isoflop(points: Points, weights: np.ndarray | None = None, level: float = 0.95) -> IsoFlop:
    """Minima of the runs of one family, grouped by the FLOPs that they spent.

    Args:
        points: of one family.
        weights: (R, n) of a bootstrap, for an interval of a; see :func:`draw_weights`.
        level: of the interval.
    """
    groups = budgets(points)
    if not groups:
        return IsoFlop(
            [],
            None,
            None,
            None,
            f"No budget was spent on {SIZES} sizes: isoFLOP minima need runs of equal FLOPs.",
        )
    once = np.ones(len(points))
    parabolas = [_parabola(points, rows, once) for rows in groups]
    minima = [p for p in parabolas if p.found]
    note = ""
    if len(minima) < len(parabolas):
        note = (
            f"{len(parabolas) - len(minima)} of {len(parabolas)} budgets have no minimum between "
            "the sizes that were trained, and do not count."
        )
    if len(minima) < MINIMA:
        return IsoFlop(parabolas, None, None, None, (note + " No exponent follows.").strip())
    kept = [p.rows for p in minima]
    a = _exponent(points, kept, once)
    interval = None
    if weights is not None and len(weights):
        draws = np.array([_exponent(points, kept, w) for w in weights])
        sound = draws[np.isfinite(draws)]
        if len(sound) > 0.98 * len(draws):
            low, high = np.quantile(sound, [(1 - level) / 2, (1 + level) / 2])
            interval = (float(low), float(high))
    return IsoFlop(parabolas, a, 1 - a, interval, note)


def budgets(points: Points) -> list[np.ndarray]:
    """Rows that spent the same FLOPs within :data:`SPREAD`, in groups of enough sizes."""
    order = np.argsort(points.flops, kind="stable")
    groups: list[list[int]] = []
    for i in order:
        if groups and points.flops[i] <= points.flops[groups[-1][0]] * (1 + SPREAD):
            groups[-1].append(int(i))
        else:
            groups.append([int(i)])
    found = [np.array(group) for group in groups]
    return [rows for rows in found if len(np.unique(points.params[rows])) >= SIZES]


def _parabola(points: Points, rows: np.ndarray, weights: np.ndarray) -> Parabola:
    x = np.log(points.params[rows])
    middle = float(x.mean())
    fitted = np.polyfit(x - middle, points.loss[rows], 2, w=np.sqrt(weights[rows]))
    c2, c1, c0 = (float(c) for c in fitted)
    flops = float(np.exp(np.log(points.flops[rows]).mean()))
    return Parabola(
        flops, (c2, c1, c0), middle, rows, float(np.exp(x.min())), float(np.exp(x.max()))
    )


def _exponent(points: Points, groups: list[np.ndarray], weights: np.ndarray) -> float:
    """Slope of log N* over log C; nan where a parabola has no minimum."""
    found = [_parabola(points, rows, weights) for rows in groups]
    best = np.array([p.params for p in found])
    if not (np.isfinite(best) & (best > 0)).all():
        return float("nan")
    return float(np.polyfit(np.log([p.flops for p in found]), np.log(best), 1)[0])
