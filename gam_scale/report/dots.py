"""Dots in any number: those that would hide one another are drawn once."""

from typing import Any

import numpy as np

from gam_scale.report.figure import FIXED
from gam_scale.report.looks import Palette

MANY = 1000
"""Dots up to which each is drawn by itself."""
MOST = 1500
"""Dots that a page shows of one colour, from all over where there are more."""
_GRID = (450, 200)
"""Places of a page's drawing that hold one dot at most, two pixels wide."""


def draw_dots(
    axes: Any, palette: Palette, x: np.ndarray, y: np.ndarray, *, log_y: bool = False, **style: Any
) -> None:
    """Dots at x (n,), on a logarithmic axis, and y (n,).

    A file holds many as pixels. A page cannot, whose colours change with the reader's scheme.
    """
    if len(x) > MANY and palette is FIXED:
        style["rasterized"] = True
    elif len(x) > MANY:
        kept = _apart(np.log(x), np.log(y) if log_y else y)
        kept = kept[:: -(-len(kept) // MOST)]
        x, y = x[kept], y[kept]
    axes.plot(x, y, **{"marker": "o", "ms": 4.5, "mew": 0, "ls": ""} | style)


def _apart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Indices of one dot of each place."""
    places = [
        np.floor((values - values.min()) / max(float(np.ptp(values)), 1e-300) * count).astype(int)
        for values, count in zip((x, y), _GRID, strict=True)
    ]
    return np.unique(places[0] * (_GRID[1] + 1) + places[1], return_index=True)[1]
