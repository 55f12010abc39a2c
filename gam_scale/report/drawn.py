"""Text that a drawing is to show as it is: not every character is in its font."""

from functools import cache

from gam_scale.errors import printable
from gam_scale.report.markdown import one_space

MOST = 48
"""Characters that a title or a key may have; of a longer one the middle is left out."""


def drawable(text: str, most: int = MOST) -> str:
    """``text`` on one line, short, with codes such as ``\\u6587`` for what the font lacks.

    That its dollars make no formula is a setting of every drawing.
    """
    line = shorten(text.replace("\u00a0", " "), most)
    if not line.isascii():
        line = "".join(c if ord(c) in _known() else ascii(c)[1:-1] for c in line)
    return line


def shorten(text: str, most: int = MOST) -> str:
    """``text`` on one line of at most so many characters, all of which can be printed."""
    line = printable(one_space(text))
    end = most // 3
    return line if len(line) <= most else f"{line[: most - end - 1]}\u2026{line[-end:]}"


@cache
def _known() -> frozenset[int]:
    """Characters of the font that every drawing is made in."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


FONT = "DejaVu Sans"
"""Comes with matplotlib, so that a drawing is the same on every machine."""
