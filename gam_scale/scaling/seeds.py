"""The spread of the loss between runs that differ by their seed alone."""

import numpy as np

from gam_scale.scaling.points import Points


def seed_spread(points: Points) -> float | None:
    """Return the standard deviation of log loss between seeds; None if no setting has several.

    It is pooled over the sizes and budgets of one family that have several runs, each about its
    own mean. Compared with it, the errors of a fit show how much of them is noise.
    """
    deviations, degrees_of_freedom = [], 0
    log_loss = np.log(points.loss)
    settings, of_row = np.unique(
        np.stack([points.params, points.tokens]), axis=1, return_inverse=True
    )
    for i in range(settings.shape[1]):
        own = log_loss[of_row.ravel() == i]
        deviations.append(((own - own.mean()) ** 2).sum())
        degrees_of_freedom += len(own) - 1
    return float(np.sqrt(sum(deviations) / degrees_of_freedom)) if degrees_of_freedom else None
