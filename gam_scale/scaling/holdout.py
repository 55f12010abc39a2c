"""How well a law fitted to smaller models tells the loss of the largest ones."""

from dataclasses import dataclass

import numpy as np

from gam_scale.errors import UserError
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.law import Law
from gam_scale.scaling.points import Points, check

SHARE = 0.2  # of the runs are held out, at least


@dataclass(frozen=True)
class HeldOut:
    """Predictions for runs that the law was not fitted to."""

    law: Law
    """Fitted to the others."""
    params: np.ndarray
    """(m,) of the runs held out, all larger than the others."""
    tokens: np.ndarray
    loss: np.ndarray
    """(m,) measured, nats per token."""
    predicted: np.ndarray
    fitted_error: float
    """Mean absolute error on the runs that it was fitted to, as a share of their loss."""

    @property
    def errors(self) -> np.ndarray:
        """(m,) predicted over measured, less one."""
        return self.predicted / self.loss - 1

    @property
    def mean_error(self) -> float:
        """Mean absolute error, as a share of the loss."""
        return float(np.abs(self.errors).mean())

    @property
    def bias(self) -> float:
        """Mean error: above zero where the law promised too high a loss."""
        return float(self.errors.mean())


def hold_out(points: Points, settings: FitSettings) -> tuple[HeldOut | None, str]:
    """Fit one family without its largest sizes; without a result, the reason.

    The largest sizes that make up a fifth of the runs are left out; where the rest can no longer
    say what the law is, the largest one alone.
    """
    sizes = np.unique(points.params)
    reason = ""
    for share in (SHARE, 0.0):
        first = next(
            i for i in range(len(sizes) - 1, -1, -1) if (points.params >= sizes[i]).mean() >= share
        )
        small = points.params < sizes[first]
        rest, largest = points.take(small), points.take(~small)
        try:
            check(rest, "what is left without the largest models")
        except UserError as error:
            reason = str(error)
            continue
        law = fit(rest, settings).law
        off = np.abs(law.loss(rest.params, rest.tokens) / rest.loss - 1).mean()
        predicted = law.loss(largest.params, largest.tokens)
        measured = (largest.params, largest.tokens, largest.loss)
        return HeldOut(law, *measured, predicted, float(off)), ""
    return None, reason
