"""Line figures of named series, and heat maps of shares."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gam_scale.report.axes import STEPS, quieten, ticks_x, ticks_y, whole
from gam_scale.report.drawn import drawable
from gam_scale.report.figure import Figure
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import Form

WIDE, SMALL = (912, 360), (430, 300)
"""Sizes of a line figure in pixels: as wide as the page; and for two side by side, or a phone."""
MAX_POINTS = 600  # a longer line is drawn as means of neighbours
LONG = 120  # points from which a line is drawn faint, with its running mean over it
LABEL = 24  # most characters in the label of a heat map's row or column
MAX_MARKED_POINTS = 30  # most points of a line that are drawn with markers


@dataclass(frozen=True)
class Series:
    """One line, with a band if ``low`` and ``high`` are given; a NaN in ``y`` breaks the line."""

    name: str
    """Name in the figure's keys; empty: not among them."""
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int | None = None
    """Index of a line colour of the page; None: the line's own index among the series."""
    opacity: float = 1.0
    smooth: bool = True
    """Whether a long line is drawn faint under its running mean."""


def line_figure(
    name: str,
    title: str,
    caption: str,
    series: Sequence[Series],
    size: tuple[int, int],
    *,
    narrow_size: tuple[int, int] | None = None,
    form: Form = "{:g}".format,
    y_range: tuple[float, float] | None = None,
    from_zero: bool = False,
    may_log: bool = False,
    log_x: bool = False,
    marks: Sequence[float] = (),
) -> Figure:
    """Return a figure of lines over optimizer steps, or over powers of two.

    Args:
        name: name of the figure's file, unique on a page.
        title: title of the figure.
        caption: what is drawn, with units.
        series: the lines.
        size: width and height on a page, in pixels.
        narrow_size: the size on phones, if ``size`` does not fit there.
        form: formats the values on the y axis.
        y_range: the ends of the y axis.
        from_zero: start the y axis at 0.
        may_log: make the y axis logarithmic if values span more than a factor of 100.
        log_x: make the x axis logarithmic, with ticks at powers of two.
        marks: heights of dotted horizontal lines.
    """
    colours = [i if line.colour is None else line.colour for i, line in enumerate(series)]
    y = finite(series)
    log = may_log and is_wide(y)

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        width = narrow_size[0] if narrow and narrow_size else size[0]
        for line, colour in zip(series, colours, strict=True):
            draw_line(axes, line, palette.line(colour), dash=palette.dash(colour))
        for height in marks:
            axes.axhline(height, color=palette.quiet, linewidth=1, linestyle=(0, (1, 3)))
        ticks_y(axes, form, log=log)
        if log_x:
            _powers_of_two(axes, series, most=width // 70)
        else:
            ticks_steps(axes, series, most=max(3, width // 110))
        if y_range is not None:
            axes.set_ylim(*y_range)
        elif from_zero and not log:
            axes.set_ylim(0, 1.1 * y.max(initial=0.0) or 1)
        quieten(axes, palette)

    keys = tuple((i, line.name) for i, line in zip(colours, series, strict=True) if line.name)
    return Figure(name, title, caption, draw if y.size else None, keys, size, narrow_size)


def heat_map(
    name: str,
    title: str,
    caption: str,
    cells: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    colour: int = 0,
) -> Figure:
    """Return a heat map of shares from 0 to 1, ``cells[row][column]``, with the numbers in it."""

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        from matplotlib.patches import Rectangle

        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                # At most 0.75 opaque, so that the number, in the page's ink, stays legible.
                box = Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, linewidth=0)
                box.set(facecolor=palette.line(colour), alpha=0.75 * value)
                axes.add_patch(box)
                text = {"ha": "center", "va": "center", "color": palette.ink, "fontsize": 11}
                axes.text(j, i, f"{value:.2f}", **text)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [drawable(name, LABEL) for name in columns])
        axes.set_yticks(range(len(rows)), [drawable(name, LABEL) for name in rows])
        axes.tick_params(length=0, labelcolor=palette.quiet, pad=6)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return Figure(name, title, caption, draw, size=(430, 60 + 34 * len(rows)), narrow=None)


def finite(series: Sequence[Series]) -> np.ndarray:
    """Return the finite y values of all lines, concatenated."""
    y = np.concatenate([np.asarray(line.y, float) for line in series])
    return y[np.isfinite(y)]


def is_wide(y: np.ndarray) -> bool:
    """Return whether values are positive and span more than a factor of 100, for a log axis."""
    return bool(y.size and y.min() > 0 and y.max() > 100 * y.min())


def draw_line(
    axes: Any,
    line: Series,
    colour: str,
    *,
    most: int = MAX_POINTS,
    width: float = 1.8,
    dash: Any = "-",
) -> None:
    """Draw a line with its band and running mean.

    ``most`` limits the number of data points drawn; ``width`` is in points, 1/72 inch.
    """
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    if line.low is not None and line.high is not None:
        low, high = np.asarray(line.low, float), np.asarray(line.high, float)
        known = np.isfinite(y) & np.isfinite(low) & np.isfinite(high)
        axes.fill_between(x[known], low[known], high[known], color=colour, alpha=0.18, lw=0)
    dots = {"marker": "o", "markersize": 2.2 * width, "markeredgewidth": 0}
    if len(y) > MAX_MARKED_POINTS:
        dots = {}
    smooth = line.smooth and len(y) >= LONG
    run = math.ceil(len(y) / most)
    x, y = _means(x, run), _means(y, run)
    style = {"color": colour, "alpha": line.opacity, "linewidth": width, "linestyle": dash}
    faint = {"alpha": 0.4 * line.opacity, "linewidth": 1} if smooth else {}
    axes.plot(x, y, **style | faint, **dots)
    if smooth:
        axes.plot(x, _running_mean(y), **style)


def ticks_steps(axes: Any, lines: Sequence[Series], most: int) -> None:
    """Fit the x axis to the lines' optimizer steps, with at most about ``most`` ticks."""
    from matplotlib.ticker import MaxNLocator

    first = min((line.x[0] for line in lines if len(line.x)), default=0)
    last = max((line.x[-1] for line in lines if len(line.x)), default=0)
    margin = 0.01 * (last - first) or 1
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(most, steps=STEPS, integer=True))
    axes.xaxis.set_major_formatter(lambda step, _: whole(step))


def _powers_of_two(axes: Any, lines: Sequence[Series], most: int) -> None:
    axes.set_xscale("log", base=2)
    points = [x for line in lines for x, y in zip(line.x, line.y, strict=True) if np.isfinite(y)]
    powers = sorted({2 ** round(math.log2(x)) for x in points})
    ticks_x(axes, powers[:: math.ceil(len(powers) / max(2, most)) or 1])


def _means(y: np.ndarray, width: int) -> np.ndarray:
    """Return the means of each ``width`` neighbours' finite values; NaN if there are none."""
    if width <= 1:
        return y
    starts = np.arange(0, len(y), width)
    count = np.add.reduceat(np.isfinite(y).astype(float), starts)
    total = np.add.reduceat(np.nan_to_num(y), starts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _running_mean(y: np.ndarray) -> np.ndarray:
    """Return the centred mean over 1/20 of the line, narrower near its ends; NaN stays NaN."""
    total = np.concatenate([[0], np.cumsum(np.nan_to_num(y))])
    count = np.concatenate([[0], np.cumsum(np.isfinite(y))])
    i = np.arange(len(y))
    # Windows are symmetric, so that the mean is not dragged at the ends.
    reach = np.minimum(len(y) // 40, np.minimum(i, len(y) - 1 - i))
    n = count[i + reach + 1] - count[i - reach]
    mean = (total[i + reach + 1] - total[i - reach]) / np.maximum(n, 1)
    return np.where(np.isfinite(y), mean, np.nan)
