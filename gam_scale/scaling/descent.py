"""BFGS on many small problems at once, so that grids of starts and bootstraps cost seconds."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ARMIJO, WOLFE = 1e-4, 0.9
HALVINGS = 50  # of a step, after which no step along the direction counts as lowering the value
FLAT = 1e-13  # relative decrease that counts as none
PATIENCE = 4  # steps without a decrease that end a descent

Function = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Minimum:
    """Where each of B descents in P dimensions ended."""

    x: np.ndarray
    """(B, P)"""
    value: np.ndarray
    """(B,)"""
    gradient: np.ndarray
    """(B,) largest absolute component of the gradient at ``x``."""
    steps: int
    """Steps of the longest descent."""
    finished: np.ndarray
    """(B,) whether the descent ended by itself rather than at the limit of steps."""
    inverse: np.ndarray
    """(B, P, P) inverse Hessians at ``x``, as BFGS estimates them."""


def minimise(
    function: Function,
    start: np.ndarray,
    *,
    inverse: np.ndarray | None = None,
    max_steps: int = 1000,
    tolerance: float = 1e-9,
    flat: float = FLAT,
) -> Minimum:
    """Descend from every row of ``start`` (B, P) until no step lowers the value any more.

    The line search meets the weak Wolfe conditions by bisection, with which BFGS also converges on
    nearly nonsmooth functions (Lewis and Overton, 2013), such as a Huber loss of small delta. There
    is deliberately no loose tolerance on the value: fits that stop early look like fits that have
    converged (arXiv 2404.10102, section 3).

    Args:
        function: returns values (K,) and gradients (K, P) at points (K, P); the second argument is
            the index (K,) of each point's problem in ``start``.
        start: (B, P) starting points.
        inverse: (B, P, P) inverse Hessians to begin with, from the minimum of a similar problem;
            None: estimated on the way.
        max_steps: number of steps after which descents are given up.
        tolerance: largest component of a gradient that counts as zero, for values of about 1.
        flat: relative decrease of the value that counts as none.
    """
    x = np.array(start, float)
    count, dims = x.shape
    value, gradient = function(x, np.arange(count))
    fresh, idle = np.full(count, inverse is None), np.zeros(count, int)
    inverse = np.tile(np.eye(dims), (count, 1, 1)) if inverse is None else inverse.copy()
    active = np.isfinite(value)
    finished = ~active
    steps = 0
    while steps < max_steps:
        steep = np.abs(gradient).max(axis=1) > tolerance * np.maximum(1, np.abs(value))
        finished |= active & ~(steep & (idle < PATIENCE))
        active &= ~finished
        index = np.flatnonzero(active)
        if not len(index):
            break
        steps += 1
        g, h = gradient[index], inverse[index]
        first = fresh[index]
        h[first] = np.eye(dims) / np.maximum(1, np.linalg.norm(g[first], axis=1))[:, None, None]
        direction = -np.einsum("kpq,kq->kp", h, g)
        slope = (direction * g).sum(axis=1)
        uphill = ~(slope < 0)  # rounding has spoilt the matrix: restart it
        direction[uphill], slope[uphill] = -g[uphill], -(g[uphill] ** 2).sum(axis=1)
        step, new_value, new_gradient = _search(
            function, index, x[index], value[index], direction, slope
        )
        moved = step > 0
        s = step[:, None] * direction
        y = new_gradient - g
        inverse[index] = _update(h, s, y, first & moved)
        # If even steepest descent finds no lower point, there is none to be found.
        stuck = ~moved & (first | uphill)
        fresh[index] = ~moved
        none = value[index] - new_value <= flat * np.abs(value[index])
        idle[index] = np.where(stuck, PATIENCE, np.where(none, idle[index] + 1, 0))
        x[index] += s
        value[index], gradient[index] = new_value, new_gradient
    return Minimum(x, value, np.abs(gradient).max(axis=1), steps, finished, inverse)


def _search(
    function: Function,
    index: np.ndarray,
    x: np.ndarray,
    value: np.ndarray,
    direction: np.ndarray,
    slope: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return step lengths (0 if none lowers the value), and the values and gradients reached."""
    count = len(index)
    low, high, step = np.zeros(count), np.full(count, np.inf), np.ones(count)
    best, best_value = np.zeros(count), value.copy()
    best_gradient = np.full(x.shape, np.nan)
    left = np.arange(count)
    for _ in range(HALVINGS):
        t = step[left]
        new, gradient = function(x[left] + t[:, None] * direction[left], index[left])
        lower = new <= value[left] + ARMIJO * t * slope[left]  # false for nan as well
        rises = (gradient * direction[left]).sum(axis=1) >= WOLFE * slope[left]
        kept = left[lower]
        best[kept], best_value[kept], best_gradient[kept] = t[lower], new[lower], gradient[lower]
        high[left[~lower]] = t[~lower]
        low[left[lower & ~rises]] = t[lower & ~rises]
        left = left[~(lower & rises)]
        if not len(left):
            break
        bounded = np.isfinite(high[left])
        step[left] = np.where(bounded, (low[left] + high[left]) / 2, 2 * low[left])
    still = np.isnan(best_gradient).any(axis=1)
    if still.any():
        best[still] = 0
        best_value[still], best_gradient[still] = function(x[still], index[still])
    return best, best_value, best_gradient


def _update(h: np.ndarray, s: np.ndarray, y: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the inverse Hessians after steps ``s`` that changed the gradients by ``y``."""
    curvature = (s * y).sum(axis=1)
    sound = curvature > 1e-300
    scale = curvature / np.where(sound, (y * y).sum(axis=1), 1)
    begin = first & sound  # the first matrix knows no scale yet (Nocedal and Wright, 6.20)
    h = np.where(begin[:, None, None], scale[:, None, None] * np.eye(h.shape[1]), h)
    rho = 1 / np.where(sound, curvature, 1)
    left = np.eye(h.shape[1]) - rho[:, None, None] * s[:, :, None] * y[:, None, :]
    new = left @ h @ left.transpose(0, 2, 1) + rho[:, None, None] * s[:, :, None] * s[:, None, :]
    return np.where(sound[:, None, None], new, h)
