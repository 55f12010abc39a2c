"""Which learning rate is best, and which is tried next so that the best has two neighbours."""

from collections.abc import Iterable, Sequence

from gam_scale.experiment.cell import Row
from gam_scale.experiment.spread import Spread


def merit(rows: Iterable[Row]) -> tuple[float, float]:
    """Return the key by which the best learning rate of a synthetic task has the largest value.

    It is the mean accuracy on texts that are neither trained on nor tested on; of equally good
    rates the lower one is best.

    Args:
        rows: rows of one learning rate, at least one.
    """
    rows = list(rows)
    return Spread.of(row["checked"] for row in rows).mean, -rows[0]["lr"]


def beyond(tried: Sequence[float], best: float) -> float | None:
    """Return a further rate if the best is the lowest or the highest of those tried.

    Args:
        tried: rates, each once.
        best: the best of them.

    Returns:
        ``best ** 2 / neighbour`` to three digits, so that the best differs from both neighbours by
        one factor; None if the best lies between others, or is the only one.
    """
    order = sorted(tried)
    if len(order) < 2 or best not in (order[0], order[-1]):
        return None
    neighbour = order[1] if best == order[0] else order[-2]
    return float(f"{best * best / neighbour:.3g}")
