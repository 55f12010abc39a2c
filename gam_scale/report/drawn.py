"""Prepare text for drawings, whose font does not have every character."""

from functools import cache

from gam_scale.errors import printable
from gam_scale.report.markdown import one_space

MAX_CHARACTERS = 48
"""Most characters of a title or key; a longer text loses its middle."""


def drawable(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return ``text`` on one short line, with codes like ``\\u6587`` for what the font lacks.

    Dollar signs need no escape: every drawing turns formulas off.
    """
    line = shorten(text.replace("\u00a0", " "), most)
    if not line.isascii():
        line = "".join(c if ord(c) in _known() else ascii(c)[1:-1] for c in line)
    return line


def shorten(text: str, most: int = MAX_CHARACTERS) -> str:
    """Return ``text`` on one line of at most ``most`` characters, all of them printable."""
    line = printable(one_space(text))
    end = most // 3
    return line if len(line) <= most else f"{line[: most - end - 1]}\u2026{line[-end:]}"


@cache
def _known() -> frozenset[int]:
    """Return the code points of the characters in :data:`FONT`."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


FONT = "DejaVu Sans"
"""Font of every drawing; it comes with matplotlib, so drawings are the same on every machine."""
