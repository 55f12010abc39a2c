"""Learning rates that are tried beyond those of a file, so that the best has neighbours."""

from collections.abc import Sequence


def beyond(tried: Sequence[float], best: float) -> float | None:
    """The next rate past the end at which the best stands, as far off as its neighbour.

    Args:
        tried: rates, each once.
        best: one of them.

    Returns:
        To three digits; None where the best stands between others, or alone.
    """
    order = sorted(tried)
    if len(order) < 2 or best not in (order[0], order[-1]):
        return None
    neighbour = order[1] if best == order[0] else order[-2]
    return float(f"{best * best / neighbour:.3g}")
