"""How a law moves when runs of few steps, which have hardly begun to learn, are left out."""

from dataclasses import dataclass

import numpy as np

from gam_scale.errors import UserError
from gam_scale.scaling.columns import steps
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.law import Law
from gam_scale.scaling.points import Points, check

LADDER = [m * 10**e for e in range(1, 7) for m in (1, 2, 5)]
MAX_ROWS = 6
"""Most rows of a family's table."""


@dataclass(frozen=True)
class WithoutShort:
    """The law of the runs of at least ``least`` steps."""

    least: int
    runs: int
    law: Law
    error: float
    """Mean absolute error, as a share of the loss."""


def by_steps(points: Points, settings: FitSettings) -> list[WithoutShort]:
    """Fit a family's law to all runs, then without runs below a rising number of steps.

    Args:
        points: runs of one family.
        settings: settings of the fits.

    Returns:
        One law for each number of steps that leaves out more runs than the one before, as long as
        enough runs are left; empty if steps are unknown, or no number leaves out any run.
    """
    taken = steps(points)
    if taken is None:
        return []
    rows, last = [], len(points) + 1
    for least in (0, *LADDER):
        kept = points.take(taken >= least)
        if len(kept) == last:
            continue
        last = len(kept)
        try:
            check(kept, shared_exponent=settings.shared_exponent)
        except UserError:
            break
        law = fit(kept, settings).law
        off = np.abs(law.loss(kept.params, kept.tokens) / kept.loss - 1)
        rows.append(WithoutShort(least, len(kept), law, float(off.mean())))
        if len(rows) == MAX_ROWS:
            break
    return rows if len(rows) > 1 else []
