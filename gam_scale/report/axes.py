"""The style of all axes: few ticks, horizontal grid lines, no box."""

from collections.abc import Sequence
from typing import Any

from gam_scale.report.drawn import drawable
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import Form

STEPS = [1, 2, 2.5, 5, 10]  # distances of ticks, times a power of ten

whole = "{:,.0f}".format


def quieten(axes: Any, palette: Palette) -> None:
    """Draw grid lines and labels in quiet colours, behind the data."""
    axes.grid(axis="y", color=palette.rule, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=palette.quiet, pad=6)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=palette.rule)


def ticks_x(axes: Any, at: Sequence[float], form: Form = whole) -> None:
    """Put ticks on the x axis at the values ``at``."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: form(x))


def ticks_y(axes: Any, form: Form = "{:.3g}".format, *, log: bool = False, most: int = 6) -> None:
    """Put few ticks on the y axis, and make it logarithmic if ``log``."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    if log:
        axes.set_yscale("log")
    ticks = LogLocator(numticks=most + 1) if log else MaxNLocator(most, steps=STEPS)
    axes.yaxis.set_major_locator(ticks)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda y, _: form(y))


def finish(
    axes: Any,
    palette: Palette,
    narrow: bool,
    x: str,
    y: str,
    x_form: Form,
    y_form: Form = "{:.3g}".format,
    log_y: bool = False,
) -> None:
    """Name and style the axes, and make x logarithmic, and y too if ``log_y``."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # An axis of less than two decades needs ticks between the powers of ten.
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5 if narrow else 9))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: x_form(value))
    ticks_y(axes, y_form, log=log_y)
    axes.set_xlabel(x, color=palette.quiet)
    axes.set_ylabel(y, color=palette.quiet)
    quieten(axes, palette)


def label(axes: Any, palette: Palette, x: float, y: float, text: str, above: bool = False) -> None:
    """Write a small note at the point (x, y)."""
    axes.annotate(
        drawable(text),
        (x, y),
        xytext=(2, 5) if above else (5, 0),
        textcoords="offset points",
        color=palette.quiet,
        fontsize=9,
        va="bottom" if above else "center",
        annotation_clip=False,
    )
