"""Which runs were planned on one budget of FLOPs."""

import numpy as np

from gam_scale.scaling.points import Points

SIZES = 3  # that a budget must have: a parabola needs as many
WIDEST = 1.25  # times the least FLOPs of a budget that its most may be, where none is given
SAME = 1.01  # times the least FLOPs of a budget, within which all runs are of one
CLEAR = 0.8  # of the span of two budgets that the gap between them must be
MOST_RUNS = 0.5  # of all runs


def budgets(points: Points) -> list[np.ndarray]:
    """Rows of each budget that was spent on :data:`SIZES` sizes at least, the smallest first.

    Budgets are those of the column flops_budget. Without one they are found: runs are parted where
    their FLOPs lie furthest apart, until each part spans no more than :data:`WIDEST`; a part is a
    budget where the next run is further from it than its own runs from each other. Where less than
    :data:`MOST_RUNS` of all runs are of such parts, runs were not planned by FLOPs: no budgets.
    """
    planned = points.budget is not None
    groups = _found(points.flops) if points.budget is None else _planned(points.budget)
    groups = [rows for rows in groups if len(np.unique(points.params[rows])) >= SIZES]
    some = planned or sum(map(len, groups)) >= MOST_RUNS * len(points)
    return groups if some else []


def _planned(budget: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(budget == value) for value in np.unique(budget[np.isfinite(budget)])]


def _found(flops: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(flops, kind="stable")
    x = np.log(flops[order])
    parts, left = [], [(0, len(x))]
    while left:
        first, last = left.pop()
        at = _widest_gap(x[first:last])
        if at is None:
            parts.append((first, last))
        else:
            left += [(first, first + at), (first + at, last)]
    return [order[slice(*part)] for part in sorted(parts) if _stands_apart(x, *part)]


def _widest_gap(x: np.ndarray) -> int | None:
    """Before which of ascending numbers they are to be parted; None where they are one budget."""
    if len(x) < 2:
        return None
    gaps, spread = np.diff(x), x[-1] - x[0]
    at = int(gaps.argmax()) + 1
    # Two budgets that are closer than one may span: both have sizes enough, and nothing between.
    two = spread > np.log(SAME) and gaps[at - 1] > CLEAR * spread
    two &= min(at, len(x) - at) >= SIZES
    return at if spread > np.log(WIDEST) or two else None


def _stands_apart(x: np.ndarray, first: int, last: int) -> bool:
    spread = x[last - 1] - x[first]
    below = x[first] - x[first - 1] if first else np.inf
    above = x[last] - x[last - 1] if last < len(x) else np.inf
    return bool(spread < min(below, above))
