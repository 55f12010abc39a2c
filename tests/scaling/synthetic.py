"""Simulated runs of a known law."""

import numpy as np

from gam_scale.scaling.law import Law
from gam_scale.scaling.points import Points, from_arrays

# Near the published law (arXiv 2203.15556), but the tests do not depend on its exact numbers.
TRUE = Law(E=1.7, A=406.0, B=410.0, alpha=0.34, beta=0.28)


def runs(
    noise: float = 0.004, seed: int = 0, sizes: int = 6, budgets: int = 5, law: Law = TRUE
) -> Points:
    """Return runs on a grid of sizes and tokens; ``noise`` is the standard deviation of log L."""
    grid = np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 2e10, budgets))
    n, d = (axis.ravel() for axis in grid)
    error = noise * np.random.default_rng(seed).standard_normal(len(n))
    return from_arrays(n, d, law.loss(n, d) * np.exp(error))


def isoflop_runs(noise: float = 0.001, seed: int = 0, law: Law = TRUE) -> Points:
    """Return runs of six sizes around the best size of each of five FLOP budgets."""
    n, d = [], []
    for flops in np.geomspace(1e17, 1e21, 5):
        best = 0.1 * flops**0.5
        for ratio in np.geomspace(0.25, 4, 6):
            n.append(best * ratio)
            d.append(flops / (6 * best * ratio))
    params, tokens = np.array(n), np.array(d)
    error = noise * np.random.default_rng(seed).standard_normal(len(n))
    return from_arrays(params, tokens, law.loss(params, tokens) * np.exp(error))
