"""A sign that long work goes on, which tells it from a hang.

Work that can take minutes calls :func:`beat` for each piece done: a block of a file hashed, a
tensor read, a token sampled. The watchdog of a job of several ranks looks at :func:`beats`.
"""

_beats = 0


def beat() -> None:
    """Note that a piece of work is done."""
    global _beats
    _beats += 1


def beats() -> int:
    """Return how often :func:`beat` was called in this process: a new number means progress."""
    return _beats
