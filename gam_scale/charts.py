"""Charts as SVG elements in the colours of the page that holds them."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from gam_scale.run.metrics_file import Line

MAX_POINTS = 600  # a longer line is drawn as means of neighbours
STEPS = [1, 2, 2.5, 5, 10]  # of axis ticks
LONG = 120  # points from which a line is drawn faint, with its running mean over it

# Plots are drawn in colours that stand for the page's: matplotlib cannot write CSS variables.
COLOURS = {
    "#010203": "currentColor",
    "#010204": "var(--quiet)",
    "#010205": "var(--rule)",
    "#010206": "var(--train)",
    "#010207": "var(--valid)",
    **{f"#01021{i}": f"var(--line{i})" for i in range(8)},
}
INK, QUIET, RULE, TRAIN, VALID, *LINES = COLOURS


@dataclass(frozen=True)
class Series:
    """One line of a :func:`line_chart`, with a band where ``low`` and ``high`` are given."""

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int = 0
    """Which of the page's ``--line`` colours."""


def column(lines: list[Line], key: str) -> list[float]:
    """The values of one key, without lines that lack it or have null."""
    return [line[key] for line in lines if line.get(key) is not None]


def chart(
    lines: list[Line],
    keys: tuple[str, ...],
    size: tuple[int, int],
    *,
    name: str,
    form: Callable[[float], str] = "{:g}".format,
    from_zero: bool = False,
    may_log: bool = False,
) -> str:
    """Columns of the metrics over steps as an ``<svg>``; empty where there are no values.

    ``size`` is in pixels of the page; ``name`` is the SVG's class and, in the page, unique.
    """
    values = [value for key in keys for value in column(lines, key)]
    if not values:
        return ""

    def draw(axes: Any) -> None:
        for key, colour in zip(keys, (TRAIN, VALID), strict=False):
            _draw(axes, lines, key, colour)
        log = may_log and min(values) > 0 and max(values) > 100 * min(values)
        if log:
            axes.set_yscale("log")
        elif from_zero:
            axes.set_ylim(0, 1.1 * max(values) or 1)
        first, last = lines[0]["step"], lines[-1]["step"]
        margin = 0.01 * (last - first) or 1
        axes.set_xlim(first - margin, last + margin)
        _quieten(axes, max(3, size[0] // 110), form, log)

    label = " and ".join(key.replace("_", " ") for key in keys)
    return drawing(draw, size, name, f"{label} by step")


def line_chart(
    series: Sequence[Series],
    size: tuple[int, int],
    *,
    name: str,
    label: str,
    form: Callable[[float], str] = "{:g}".format,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[float] = (),
    log_x: bool = True,
) -> str:
    """Lines with markers and bands as an ``<svg>``, over powers of two unless ``log_x`` is false.

    Points that are not finite are left out. ``size`` and ``name`` are as in :func:`chart`;
    ``label`` says in words what is drawn; ``marks`` are heights of dotted rules.
    """

    def draw(axes: Any) -> None:
        import numpy as np
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        ticks: set[int] = set()
        for line in series:
            x, y = np.array(line.x, float), np.array(line.y, float)
            seen = np.isfinite(y)
            colour = LINES[line.colour % len(LINES)]
            axes.plot(x[seen], y[seen], color=colour, linewidth=1.8, marker="o", markersize=4)
            if line.low is not None and line.high is not None:
                low, high = np.array(line.low, float), np.array(line.high, float)
                sure = seen & np.isfinite(low) & np.isfinite(high)
                axes.fill_between(x[sure], low[sure], high[sure], color=colour, alpha=0.18, lw=0)
            ticks |= {2 ** round(math.log2(value)) for value in x[seen]} if log_x else set()
        for height in marks:
            axes.axhline(height, color=QUIET, linewidth=1, linestyle=(0, (1, 3)))
        _quieten(axes, 0 if log_x else max(3, size[0] // 110), form, log=False)
        if log_x:
            axes.set_xscale("log", base=2)
            each = math.ceil(len(ticks) / max(2, size[0] // 70))
            axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)[::each]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        if y_range is not None:
            axes.set_ylim(*y_range)

    return drawing(draw, size, name, label)


def heat_map(
    cells: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    size: tuple[int, int],
    *,
    name: str,
    label: str,
    colour: int = 0,
) -> str:
    """Shares from 0 to 1, ``cells[row][column]``, written into boxes that they fill with colour."""

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for i, row in enumerate(cells):
            for j, value in enumerate(row):
                # Never so full that the number, in the page's ink, is hard to read.
                box = {"facecolor": LINES[colour % len(LINES)], "alpha": 0.75 * value}
                axes.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, linewidth=0, **box))
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=INK, fontsize=11)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(length=0, labelcolor=QUIET, pad=6)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return drawing(draw, size, name, label)


def drawing(draw: Callable[[Any], None], size: tuple[int, int], name: str, label: str) -> str:
    """What ``draw`` puts on matplotlib's axes in the colours of :data:`COLOURS`, as an ``<svg>``.

    ``size`` and ``name`` are as in :func:`chart`; ``label`` says in words what is drawn.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 12}
    with matplotlib.rc_context(settings):
        figure = Figure((size[0] / 72, size[1] / 72), layout="constrained")  # 72 units an inch
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True)
    return _inline(text.getvalue(), name, f'class="{name}" role="img" aria-label="{label}"')


def _draw(axes: Any, lines: list[Line], key: str, colour: str) -> None:
    import numpy as np

    y = np.array([line.get(key) for line in lines], dtype=float)  # None becomes NaN
    x = np.array([line["step"] for line in lines], dtype=float)
    if colour == VALID:  # evaluated at some steps only: join those
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    few = np.isfinite(y).sum() <= (30 if colour == VALID else 1)
    width = math.ceil(len(y) / MAX_POINTS)
    x, y, long = _means(x, width), _means(y, width), len(y) >= LONG and key != "lr"
    dots = {"marker": "o", "markersize": 5, "markeredgewidth": 0} if few else {}
    axes.plot(x, y, color=colour, linewidth=1 if long else 1.8, alpha=0.4 if long else 1, **dots)
    if long:
        axes.plot(x, _smooth(y), color=colour, linewidth=1.8)


def _quieten(axes: Any, x_ticks: int, form: Callable[[float], str], log: bool) -> None:
    """Few ticks, horizontal rules, no box."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(numticks=6) if log else MaxNLocator(6, steps=STEPS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form(y)))
    if x_ticks:
        axes.xaxis.set_major_locator(MaxNLocator(x_ticks, steps=STEPS, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.grid(axis="y", color=RULE, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=QUIET, pad=6)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=RULE)


def _means(y: Any, width: int) -> Any:
    """Means over runs of ``width`` neighbours, of what is finite in each."""
    import numpy as np

    if width <= 1:
        return y
    starts = np.arange(0, len(y), width)
    count = np.add.reduceat(np.isfinite(y).astype(float), starts)
    total = np.add.reduceat(np.nan_to_num(y), starts)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _smooth(y: Any) -> Any:
    """Centred mean over a twentieth of the line, narrower towards its ends; gaps stay gaps."""
    import numpy as np

    total = np.concatenate([[0], np.cumsum(np.nan_to_num(y))])
    count = np.concatenate([[0], np.cumsum(np.isfinite(y))])
    i = np.arange(len(y))
    reach = np.minimum(len(y) // 40, np.minimum(i, len(y) - 1 - i))  # even-handed: no end drags
    n = count[i + reach + 1] - count[i - reach]
    mean = (total[i + reach + 1] - total[i - reach]) / np.maximum(n, 1)
    return np.where(np.isfinite(y), mean, np.nan)


def scientific(value: float) -> str:
    """``3e-4``, without the zeros that ``%e`` pads with."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    return f"{value / 10**exponent:.3g}e{exponent}"


def _inline(svg: str, name: str, attributes: str) -> str:
    """From a matplotlib file to an element: no prolog or metadata, own ids, the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('id="', f'id="{name}-')
    svg = re.sub(r"\n\s*", "\n", svg)
    for placeholder, colour in COLOURS.items():
        svg = svg.replace(placeholder, colour)
    head, _, rest = svg.partition(">")
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    return f"<svg {attributes} {box}>{rest}"
