"""Figures, drawn by one function for pages, in CSS colours, and for files, in fixed colours."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any, ClassVar

from gam_scale.report.drawn import FONT, drawable, shorten
from gam_scale.report.looks import LIGHT, Palette, swatch
from gam_scale.report.markdown import picture, plain

WIDE, NARROW, FILE = (912, 400), (430, 340), (820, 440)
NO_DATA = "There are no values to draw."

MAX_KEYS_INSIDE = 5  # most keys that a file shows inside the axes rather than beside them

# matplotlib cannot write CSS variables, so a page's figures are drawn in placeholder colours.
PLACEHOLDERS = {
    "#010203": "currentColor",
    "#010204": "var(--quiet)",
    "#010205": "var(--rule)",
    **{f"#01021{i}": f"var(--line{i})" for i in range(len(LIGHT))},
}
_INK, _QUIET, _RULE, *_LINES = PLACEHOLDERS
PAGE = Palette(_INK, _QUIET, _RULE, tuple(_LINES))
FIXED = Palette("#1c1f24", "#646b76", "#e2e5e9", LIGHT)


@dataclass(frozen=True)
class Figure:
    """A drawing with a title, a caption and keys."""

    kind: ClassVar[str] = "figure"

    name: str
    """Name of the figure's file, and its CSS class on a page, where it must be unique."""
    title: str
    caption: str
    draw: Callable[[Any, Palette, bool], None] | None
    """Draws on matplotlib's axes with a palette; the flag asks for a narrow drawing.

    None if there is no data.
    """
    keys: tuple[tuple[int, str], ...] = ()
    """Colour index and name of each line that the legend explains."""
    size: tuple[int, int] = WIDE
    """Width and height on a page, in pixels."""
    narrow: tuple[int, int] | None = NARROW
    """Size of a second drawing, for phones; None if the first one fits there."""
    marked: bool = False
    """Whether lines differ by markers in addition to colour; otherwise they differ by dashes."""

    def swatches(self) -> list[tuple[str, str]]:
        """Return an ``<svg>`` element and the name of each key."""
        look = {"marked": self.marked, "dashed": not self.marked}
        return [(swatch(i, **look), name) for i, name in self.keys]

    def drawings(self) -> list[str]:
        """Return the ``<svg>`` elements for a page; needs matplotlib."""
        if self.draw is None:
            return []
        return [self.svg(), self.svg(narrow=True)] if self.narrow else [self.svg()]

    def svg(self, narrow: bool = False) -> str:
        """Return one ``<svg>`` element, in the page's colours."""
        name, size = (f"{self.name}-narrow", self.narrow) if narrow else (self.name, self.size)
        drawing = self.draw
        assert size is not None and drawing is not None

        def draw(axes: Any) -> None:
            drawing(axes, PAGE, narrow)

        settings = {"svg.fonttype": "none", "font.size": 12}
        svg = _drawn(draw, size, name, settings, format="svg", transparent=True).decode()
        return _element(
            svg, name, f'class="{name}" role="img" aria-label="{escape(shorten(self.title))}"'
        )

    def file(self, form: str) -> bytes:
        """Return the bytes of a ``png``, ``svg`` or ``pdf`` file, on white, with title and keys."""
        drawing = self.draw
        assert drawing is not None

        def draw(axes: Any) -> None:
            from matplotlib.lines import Line2D

            drawing(axes, FIXED, False)
            style = {"fontsize": 12, "fontweight": "bold"}
            title = drawable(self.title)
            if axes.axison:
                axes.set_title(title, loc="left", **style)
            else:  # the axes only hold panels, which have titles of their own
                axes.figure.suptitle(title, x=0.01, ha="left", **style)
            if self.keys:
                handles = [Line2D([], [], lw=2, **self._look(i)) for i, _ in self.keys]
                names = [drawable(name) for _, name in self.keys]
                beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
                where = beside if len(names) > MAX_KEYS_INSIDE else {}
                axes.legend(handles, names, frameon=False, labelcolor=FIXED.ink, **where)

        saving = {"format": form, "dpi": 144, "facecolor": "white"}
        if form == "svg":
            saving["metadata"] = {"Date": None}
        return _drawn(draw, FILE, self.name, {"font.size": 11}, **saving)

    def _look(self, i: int) -> dict[str, Any]:
        """Return matplotlib's properties of the i-th line's key in a file."""
        if self.marked:
            return {"color": FIXED.line(i), "marker": FIXED.marker(i), "mew": 0}
        return {"color": FIXED.line(i), "linestyle": FIXED.dash(i)}

    def markdown(self) -> str:
        """Return a section of Markdown that shows the figure's .png file."""
        names = ", ".join(name for _, name in self.keys)
        caption = self.caption + (f" ({names})" if names else "")
        shown = picture(self.title, f"{self.name}.png") if self.draw else NO_DATA
        return f"## {plain(self.title)}\n\n{shown}\n\n{plain(caption)}"


def shades(count: int) -> list[float]:
    """Return opacities for ``count`` lines of one colour, ascending to 1."""
    return [0.35 + 0.65 * (i + 1) / count for i in range(count)]


def _drawn(
    draw: Callable[[Any], None],
    size: tuple[int, int],
    salt: str,
    settings: dict[str, Any],
    **saving: Any,
) -> bytes:
    """Run ``draw`` on new axes and return the saved file, the same bytes each time."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    # Dollar signs in the names of runs and families must not become formulas.
    every: dict[Any, Any] = {"svg.hashsalt": salt, "text.parse_math": False, "font.family": [FONT]}
    with matplotlib.rc_context(every | settings):
        canvas = Canvas((size[0] / 72, size[1] / 72), layout="constrained")  # 72 units an inch
        draw(canvas.add_subplot())
        out = BytesIO()
        canvas.savefig(out, **saving)
    return out.getvalue()


def _element(svg: str, name: str, attributes: str) -> str:
    """Make an element of matplotlib's file: no prolog or metadata, unique ids, page colours."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('id="', f'id="{name}-')
    svg = re.sub(r"\n\s*", "\n", svg)
    for placeholder, colour in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, colour)
    head, _, rest = svg.partition(">")
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    return f"<svg {attributes} {box}>{rest}"
