"""Small multiples: panels of lines side by side, which share their axes' scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gam_scale.report.axes import quieten, ticks_y
from gam_scale.report.drawn import drawable
from gam_scale.report.figure import Figure
from gam_scale.report.lines import Series, draw_line, finite, is_wide, ticks_steps
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import Form

_WIDE, _NARROW = 912, 430
_BESIDE, _BESIDE_NARROW = 4, 2
"""Panels in a row, on a page and on a phone."""
_HIGH, _TITLE = 165, 25
"""Height in pixels of a row of panels, and of the space above all rows."""
_POINTS = 100
"""Most points of a line: a panel has no room for more."""


@dataclass(frozen=True)
class Panel:
    """The title and lines of a panel; lines without a colour get the page's first one."""

    title: str
    lines: Sequence[Series]


def panel_figure(
    name: str, title: str, caption: str, panels: Sequence[Panel], form: Form = "{:,g}".format
) -> Figure:
    """Return a figure of panels over steps; log y axes if values span more than a factor of 100.

    Args:
        name: name of the figure's file, unique on a page.
        title: title of the figure.
        caption: what is drawn, with units.
        panels: from left to right, then from top to bottom.
        form: formats the values on the y axes.
    """
    lines = [line for panel in panels for line in panel.lines]
    y = finite(lines)
    log = is_wide(y)

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        axes.set_axis_off()
        columns = _columns(len(panels), narrow)
        grid = axes.get_subplotspec().subgridspec(math.ceil(len(panels) / columns), columns)
        first: Any = None
        for i, (panel, cell) in enumerate(zip(panels, grid, strict=False)):
            one = axes.figure.add_subplot(cell, sharex=first, sharey=first)
            first = first or one
            _draw(one, panel, palette)
            ticks_y(one, form, log=log, most=4)
            ticks_steps(one, lines, most=2)
            quieten(one, palette)
            is_left, is_lowest = i % columns == 0, i + columns >= len(panels)
            one.tick_params(labelsize=10, labelleft=is_left, labelbottom=is_lowest)

    wide, phone = ((_WIDE, False), (_NARROW, True))
    return Figure(
        name,
        title,
        caption,
        draw if y.size else None,
        size=_size(len(panels), *wide),
        narrow=_size(len(panels), *phone),
    )


def _draw(axes: Any, panel: Panel, palette: Palette) -> None:
    for line in panel.lines:
        draw_line(axes, line, palette.line(line.colour or 0), most=_POINTS, width=1.2)
    axes.set_title(drawable(panel.title), loc="left", fontsize=10, color=palette.quiet, pad=4)


def _columns(panels: int, narrow: bool) -> int:
    return min(_BESIDE_NARROW if narrow else _BESIDE, panels)


def _size(panels: int, width: int, narrow: bool) -> tuple[int, int]:
    return width, _TITLE + _HIGH * math.ceil(panels / _columns(panels, narrow))
