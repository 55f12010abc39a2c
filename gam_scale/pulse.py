"""A sign that long work goes on, for whoever has to tell it from a hang.

What can take minutes calls :func:`beat` for each piece that is done: a block of a file hashed, a
tensor read, a token sampled. The watchdog of a job of several ranks looks at :func:`beats`.
"""

_beats = 0


def beat() -> None:
    """Note that a piece of work is done."""
    global _beats
    _beats += 1


def beats() -> int:
    """How often that was noted in this process: another number means progress."""
    return _beats
