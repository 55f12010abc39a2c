"""How often intervals hold the truth: python -m gam_scale.scaling.coverage --sets 200

Data sets are simulated from a known law with normal noise on log L and fitted; their intervals are
compared with the law's own coefficients. At the nominal rate, 95 of 100 intervals hold the truth.
Two kinds of grid are simulated, as a sweep makes them: sizes by tokens, and sizes by FLOPs.
"""

import math
from operator import attrgetter

import numpy as np

from gam_scale import cli
from gam_scale.scaling.bootstrap import Quantity, bootstrap, of_optimum
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.isoflop import isoflop
from gam_scale.scaling.law import COEFFICIENTS, Law
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points, from_arrays

LAW = Law(E=1.7, A=406.0, B=410.0, alpha=0.34, beta=0.28)
FAR = (7e9, 1.4e11)  # parameters and tokens of a model seven times larger than the largest
FLOPS_PER_PAIR = 6.0
TOKENS_GRIDS, ISOFLOP_GRIDS = ((6, 5), (4, 3)), ((7, 4), (5, 3))
"""Sizes and budgets of the grids that are simulated."""


def tokens_grid(sizes: int, budgets: int) -> Points:
    """Return runs without noise: sizes from 1e6 to 1e9 parameters, each on budgets of tokens."""
    grid = np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 2e10, budgets))
    return _exact(*(axis.ravel() for axis in grid))


def isoflop_grid(sizes: int, budgets: int) -> Points:
    """Return runs without noise: sizes that span a factor of 64, each on budgets of FLOPs.

    The best size of each budget lies between these, nearer to the smaller ones on small budgets.
    """
    grid = np.meshgrid(np.geomspace(4e6, 2.56e8, sizes), np.geomspace(3e16, 1e18, budgets))
    n, c = (axis.ravel() for axis in grid)
    return _exact(n, c / (FLOPS_PER_PAIR * n))


def _exact(params: np.ndarray, tokens: np.ndarray) -> Points:
    return from_arrays(params, tokens, LAW.loss(params, tokens))


def coverage(
    sets: int,
    grid: Points,
    noise: float,
    resamples: int = 500,
    seed: int = 0,
    settings: FitSettings | None = None,
) -> dict[str, float]:
    """Return, by quantity, the share of data sets whose interval holds the truth.

    A missing interval counts as one that does not.

    Args:
        sets: number of simulated data sets.
        grid: runs without noise; if they have budgets of FLOPs, the isoFLOP exponent counts too.
        noise: standard deviation of log L.
        resamples: number of refits behind each interval.
        seed: seed of the first data set.
        settings: settings of the fits; by default those of the report with a smaller grid.
    """
    settings = settings or FitSettings(grid=3)
    quantities: dict[str, Quantity] = {c: attrgetter(c) for c in COEFFICIENTS}
    quantities["a"] = of_optimum(FLOPS_PER_PAIR, "a")
    quantities["loss at 7B"] = lambda law: float(law.loss(*FAR))
    hits = dict.fromkeys(quantities, 0)
    for i in range(sets):
        error = noise * np.random.default_rng(seed + i).standard_normal(len(grid))
        points = from_arrays(grid.params, grid.tokens, grid.loss * np.exp(error))
        fitted = fit(points, settings)
        refits = bootstrap(fitted, settings.delta, points.run, resamples, seed + i)
        for name, quantity in quantities.items():
            hits[name] += _holds(refits.interval(quantity), quantity(LAW))
        minima = isoflop(points, fitted, refits, seed + i)
        if minima.parabolas:
            held = _holds(minima.a_interval, Optimum(LAW, FLOPS_PER_PAIR).a)
            hits["a (isoFLOP)"] = hits.get("a (isoFLOP)", 0) + held
    return {name: count / sets for name, count in hits.items()}


def _holds(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and bool(interval[0] <= truth <= interval[1])


def main() -> None:
    """Measure and print the coverage for two sizes of each kind of sweep."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--sets", type=cli.count(), default=200, help="number of simulated data sets (default: 200)"
    )
    parser.add_argument(
        "--noise",
        type=cli.number(at_least=0),
        default=0.005,
        help="standard deviation of the noise on log L (default: 0.005)",
    )
    args = parser.parse_args()
    error = math.sqrt(0.95 * 0.05 / args.sets)
    print(f"share of {args.sets} data sets whose 95% intervals hold the truth, +- {error:.3f}")
    grids = [(f"{s} sizes x {b} budgets of tokens", tokens_grid(s, b)) for s, b in TOKENS_GRIDS]
    grids += [(f"{s} sizes x {b} budgets of FLOPs", isoflop_grid(s, b)) for s, b in ISOFLOP_GRIDS]
    for name, grid in grids:
        shares = coverage(args.sets, grid, args.noise)
        cells = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"{name}: {cells}", flush=True)


if __name__ == "__main__":
    cli.run(main)
