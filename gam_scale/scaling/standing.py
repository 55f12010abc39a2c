"""Find which family has the least measured loss at each budget, without any law.

Runs of one size and tokens that differ by their seed count as one, with their mean loss: the least
of several seeds would be the luckiest, and a family with more of them would gain.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gam_scale.scaling.columns import numeric_column
from gam_scale.scaling.points import Points
from gam_scale.scaling.seeds import seed_spread

SPREAD = 1.1
"""Largest ratio of neighbouring FLOPs within one budget."""
WIDEST = 1.5
"""Largest ratio of the most to the least FLOPs within one budget."""
MAX_BUDGETS, SAMPLED_BUDGETS = 12, 4
"""Most budgets that are told apart, and amounts of compute looked at if none are common."""


@dataclass(frozen=True)
class Best:
    """A family's best size within a budget, by the mean over its seeds."""

    name: str
    loss: float
    params: float
    tokens: float
    late: float | None = None
    """The loss at late positions, if the column ``late_loss`` has it of every seed."""
    spread: float | None = None
    """Standard deviation over the family's seeds, in nats; None if each setting was run once."""


@dataclass(frozen=True)
class Standing:
    """The families' best runs within one budget, the least loss first."""

    flops: float
    best: list[Best]

    @property
    def margin(self) -> float:
        """Nats by which the first is ahead of the second."""
        return self.best[1].loss - self.best[0].loss

    @property
    def within_spread(self) -> bool:
        """Whether the margin is below twice the larger spread over seeds of the first two."""
        spreads = [one.spread for one in self.best[:2] if one.spread is not None]
        return bool(spreads) and self.margin < 2 * max(spreads)


def standings(measured: Sequence[tuple[str, Points]]) -> list[Standing]:
    """Return the standing at each budget that at least two families spent, in rising order.

    If runs spent no common budgets, as on grids of tokens, standings are at a few amounts of
    compute within the range of all families. There a family's best run is the one with the least
    loss among its runs of at most this compute.
    """
    if len(measured) < 2:
        return []
    levels = _common(measured)
    spread = {name: seed_spread(points) for name, points in measured}
    if levels:
        found = [
            _standing(
                level.max(), [(n, p.take(np.isin(_spent(p), level))) for n, p in measured], spread
            )
            for level in levels
        ]
    else:
        low = max(float(p.flops.min()) for _, p in measured)
        high = min(float(p.flops.max()) for _, p in measured)
        budgets = np.geomspace(low, high, SAMPLED_BUDGETS) if high > low else np.array([])
        found = [
            _standing(c, [(n, p.take(p.flops <= c)) for n, p in measured], spread) for c in budgets
        ]
    return [standing for standing in found if len(standing.best) > 1]


def _common(measured: Sequence[tuple[str, Points]]) -> list[np.ndarray]:
    """Return the FLOPs of each common budget's runs; empty if runs do not fall into budgets."""
    flops = np.sort(np.concatenate([_spent(p) for _, p in measured]))
    levels = np.split(flops, np.flatnonzero(flops[1:] > SPREAD * flops[:-1]) + 1)
    if len(levels) > MAX_BUDGETS or any(level[-1] > WIDEST * level[0] for level in levels):
        return []
    return [
        level for level in levels if sum(np.isin(level, _spent(p)).any() for _, p in measured) > 1
    ]


def _spent(points: Points) -> np.ndarray:
    """Return the FLOPs (n,) that were planned, or spent if none were planned."""
    if points.budget is None:
        return points.flops
    return np.where(np.isnan(points.budget), points.flops, points.budget)


def _standing(
    flops: float, runs: Sequence[tuple[str, Points]], spread: Mapping[str, float | None]
) -> Standing:
    best = []
    for name, points in runs:
        if len(points):
            settings, of_row = np.unique(
                np.stack([points.params, points.tokens]), axis=1, return_inverse=True
            )
            seeds = [np.flatnonzero(of_row.ravel() == i) for i in range(settings.shape[1])]
            rows = min(seeds, key=lambda rows: float(points.loss[rows].mean()))
            loss, (n, d) = float(points.loss[rows].mean()), (points.params, points.tokens)
            late = numeric_column(points, "late_loss", gaps=True)
            own = np.nan if late is None else float(late[rows].mean())
            noise = spread[name]  # of log loss
            best.append(
                Best(
                    name,
                    loss,
                    float(n[rows[0]]),
                    float(d[rows[0]]),
                    own if np.isfinite(own) else None,
                    None if noise is None else noise * loss,
                )
            )
    return Standing(float(flops), sorted(best, key=lambda one: one.loss))
