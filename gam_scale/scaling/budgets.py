"""Group runs by the budget of FLOPs that they were planned on."""

import numpy as np

from gam_scale.scaling.points import Points

SIZES = 3  # fewest sizes of a budget: a parabola needs as many
WIDEST = 1.25  # largest ratio of FLOPs within a budget, if budgets are not given
SAME = 1.01  # ratio of FLOPs within which runs are always of one budget
CLEAR = 0.8  # least share of the span of two budgets that the gap between them must take
MOST_RUNS = 0.5  # least share of all runs that must be on a budget, if budgets are not given


def budgets(points: Points) -> list[np.ndarray]:
    """Return the rows of each budget with at least :data:`SIZES` sizes, the smallest budget first.

    Budgets are those of the column flops_budget. Without this column they are found: runs are split
    where their FLOPs lie furthest apart, until each part spans no more than :data:`WIDEST`. A part
    is a budget if the next run is further from it than its own runs are from each other. If less
    than :data:`MOST_RUNS` of all runs are on such budgets, the runs were not planned by FLOPs, and
    there are no budgets.
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
    """Return the index at which to split ascending numbers; None if they are one budget."""
    if len(x) < 2:
        return None
    gaps, spread = np.diff(x), x[-1] - x[0]
    at = int(gaps.argmax()) + 1
    # Two budgets may be closer than WIDEST: then both have enough runs, and nothing lies between.
    two = spread > np.log(SAME) and gaps[at - 1] > CLEAR * spread
    two &= min(at, len(x) - at) >= SIZES
    return at if spread > np.log(WIDEST) or two else None


def _stands_apart(x: np.ndarray, first: int, last: int) -> bool:
    spread = x[last - 1] - x[first]
    below = x[first] - x[first - 1] if first else np.inf
    above = x[last] - x[last - 1] if last < len(x) else np.inf
    return bool(spread < min(below, above))
