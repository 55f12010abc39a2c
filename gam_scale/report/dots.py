"""Draw any number of dots, but only one of those that would hide one another."""

from typing import Any

import numpy as np

from gam_scale.report.figure import FIXED
from gam_scale.report.looks import Palette

MAX_DOTS_ALL_DRAWN = 1000
"""Number of dots up to which every dot is drawn."""
MAX_DOTS_ON_PAGE = 1500
"""Most dots of one colour on a page; of more, an even sample is drawn."""
_GRID = (450, 200)
"""Cells across and down a page's drawing, about two pixels wide, that hold at most one dot each."""


def draw_dots(
    axes: Any, palette: Palette, x: np.ndarray, y: np.ndarray, *, log_y: bool = False, **style: Any
) -> None:
    """Draw dots at x (n,), on a logarithmic axis, and y (n,).

    Many dots become pixels in a file. A page draws fewer dots instead, since its colours change
    with the reader's scheme.
    """
    if len(x) > MAX_DOTS_ALL_DRAWN and palette is FIXED:
        style["rasterized"] = True
    elif len(x) > MAX_DOTS_ALL_DRAWN:
        kept = _apart(np.log(x), np.log(y) if log_y else y)
        kept = kept[:: -(-len(kept) // MAX_DOTS_ON_PAGE)]
        x, y = x[kept], y[kept]
    axes.plot(x, y, **{"marker": "o", "ms": 4.5, "mew": 0, "ls": ""} | style)


def _apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the index of one dot in each occupied cell of :data:`_GRID`."""
    places = [
        np.floor((values - values.min()) / max(float(np.ptp(values)), 1e-300) * count).astype(int)
        for values, count in zip((x, y), _GRID, strict=True)
    ]
    return np.unique(places[0] * (_GRID[1] + 1) + places[1], return_index=True)[1]
