"""Learning rates beyond those of a file, tried so that the best has a neighbour on each side."""

from collections.abc import Sequence


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
