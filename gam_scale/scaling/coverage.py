"""How often intervals hold the truth: python -m gam_scale.scaling.coverage --sets 200

Data sets are simulated from a known law with normal noise on log L, fitted, and their intervals
compared with the law's own coefficients. At the nominal rate 95 in 100 hold it.
"""

import math
from operator import attrgetter

import numpy as np

from gam_scale import cli
from gam_scale.scaling.bootstrap import Quantity, bootstrap, of_optimum
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.law import COEFFICIENTS, Law
from gam_scale.scaling.points import from_arrays

LAW = Law(E=1.7, A=406.0, B=410.0, alpha=0.34, beta=0.28)
FAR = (7e9, 1.4e11)  # parameters and tokens of a model seven times larger than the largest
FLOPS_PER_PAIR = 6.0


def coverage(
    sets: int,
    sizes: int,
    budgets: int,
    noise: float,
    resamples: int = 200,
    seed: int = 0,
    settings: FitSettings | None = None,
) -> dict[str, float]:
    """Share of data sets whose intervals hold the truth, by name.

    Args:
        sets: simulated.
        sizes: from 1e6 to 1e9 parameters, on each of the budgets.
        budgets: from 1e8 to 2e10 tokens.
        noise: standard deviation of log L.
        resamples: refits behind each interval.
        seed: of the first data set.
        settings: of the fits; by default those of the report with a smaller grid.
    """
    settings = settings or FitSettings(grid=3)
    grid = np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 2e10, budgets))
    n, d = (axis.ravel() for axis in grid)
    quantities: dict[str, Quantity] = {c: attrgetter(c) for c in COEFFICIENTS}
    quantities["a"] = of_optimum(FLOPS_PER_PAIR, "a")
    quantities["loss at 7B"] = lambda law: float(law.loss(*FAR))
    hits = dict.fromkeys(quantities, 0)
    for i in range(sets):
        error = noise * np.random.default_rng(seed + i).standard_normal(len(n))
        points = from_arrays(n, d, LAW.loss(n, d) * np.exp(error))
        fitted = fit(points, settings)
        draws = bootstrap(fitted, settings.delta, points.run, resamples, seed + i)
        for name, quantity in quantities.items():
            low, high = draws.interval(quantity) or (-math.inf, math.inf)
            hits[name] += bool(low <= quantity(LAW) <= high)
    return {name: count / sets for name, count in hits.items()}


def main() -> None:
    """Measure and print, for two sizes of sweep."""
    parser = cli.Parser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", type=cli.count(), default=200, help="simulated data sets (200)")
    parser.add_argument(
        "--noise", type=cli.number(at_least=0), default=0.005, help="of log L (0.005)"
    )
    args = parser.parse_args()
    error = math.sqrt(0.95 * 0.05 / args.sets)
    print(f"share of {args.sets} data sets whose 95% intervals hold the truth, +- {error:.3f}")
    for sizes, budgets in ((6, 5), (4, 3)):
        shares = coverage(args.sets, sizes, budgets, args.noise)
        cells = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"{sizes} sizes x {budgets} budgets: {cells}", flush=True)


if __name__ == "__main__":
    cli.run(main)
