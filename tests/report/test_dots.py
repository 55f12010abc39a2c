"""Many dots make no large page, and look as if all were drawn."""

from typing import Any

import numpy as np

from gam_scale.report.axes import finish
from gam_scale.report.dots import MAX_DOTS_ALL_DRAWN, MAX_DOTS_ON_PAGE, draw_dots
from gam_scale.report.figure import Figure
from gam_scale.report.looks import Palette


def figure(count: int) -> Figure:
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=count))
    y = rng.normal(size=count)

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        draw_dots(axes, palette, x, y, color=palette.line(0))
        finish(axes, palette, narrow, "x", "y", "{:g}".format)

    return Figure("dots", "Dots", "dots", draw)


def test_a_page_has_one_dot_of_each_place_and_a_file_has_pixels() -> None:
    few, many = figure(MAX_DOTS_ALL_DRAWN), figure(50 * MAX_DOTS_ALL_DRAWN)
    assert few.svg().count("<use") >= MAX_DOTS_ALL_DRAWN and b"<image" not in few.file("svg")
    assert MAX_DOTS_ON_PAGE / 2 < many.svg().count("<use") <= MAX_DOTS_ON_PAGE + 50  # and the ticks
    assert "<image" not in many.svg()
    drawn = many.file("svg")
    assert b"<image" in drawn and len(drawn) < 200_000


def test_a_place_keeps_its_dot() -> None:
    """Many dots at only two points are drawn as two dots."""
    x = np.tile([1.0, 10.0], MAX_DOTS_ALL_DRAWN)

    class Axes:
        def plot(self, x: Any, y: Any, **_: Any) -> None:
            self.drawn = sorted(zip(x.tolist(), y.tolist(), strict=True))

    axes = Axes()
    draw_dots(axes, Palette("", "", "", ("",)), x, x / 10)
    assert axes.drawn == [(1.0, 0.1), (10.0, 1.0)]
