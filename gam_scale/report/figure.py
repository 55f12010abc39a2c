"""Figures: drawn once, for pages in the page's colours and for files in fixed ones."""

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

MANY = 5  # keys up to which they stand within a file's axes

# matplotlib cannot write CSS variables: a page's figures are drawn in colours that stand for them.
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
    """Something drawn, under a title."""

    kind: ClassVar[str] = "figure"

    name: str
    """Its file's, and on a page its class: unique there."""
    title: str
    caption: str
    draw: Callable[[Any, Palette, bool], None] | None
    """Onto matplotlib's axes, in colours; whether there is little room. None without any data."""
    keys: tuple[tuple[int, str], ...] = ()
    """Number and name of each line colour that needs explaining."""
    size: tuple[int, int] = WIDE
    """In pixels of a page."""
    narrow: tuple[int, int] | None = NARROW
    """The size of a second drawing, for phones; None for figures that fit there."""
    marked: bool = False
    """Whether lines differ by markers, as well as by colour; else by dashes."""

    def swatches(self) -> list[tuple[str, str]]:
        """An ``<svg>`` element for each key, and its name."""
        look = {"marked": self.marked, "dashed": not self.marked}
        return [(swatch(i, **look), name) for i, name in self.keys]

    def drawings(self) -> list[str]:
        """``<svg>`` elements for a page; needs matplotlib."""
        if self.draw is None:
            return []
        return [self.svg(), self.svg(narrow=True)] if self.narrow else [self.svg()]

    def svg(self, narrow: bool = False) -> str:
        """One element of a page, in its colours."""
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
        """As a file: ``png``, ``svg`` or ``pdf``, on white, with its keys."""
        drawing = self.draw
        assert drawing is not None

        def draw(axes: Any) -> None:
            from matplotlib.lines import Line2D

            drawing(axes, FIXED, False)
            style = {"fontsize": 12, "fontweight": "bold"}
            title = drawable(self.title)
            if axes.axison:
                axes.set_title(title, loc="left", **style)
            else:  # the place of others, which have titles of their own
                axes.figure.suptitle(title, x=0.01, ha="left", **style)
            if self.keys:
                handles = [Line2D([], [], lw=2, **self._look(i)) for i, _ in self.keys]
                names = [drawable(name) for _, name in self.keys]
                beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
                where = beside if len(names) > MANY else {}
                axes.legend(handles, names, frameon=False, labelcolor=FIXED.ink, **where)

        saving = {"format": form, "dpi": 144, "facecolor": "white"}
        if form == "svg":
            saving["metadata"] = {"Date": None}
        return _drawn(draw, FILE, self.name, {"font.size": 11}, **saving)

    def _look(self, i: int) -> dict[str, Any]:
        """The i-th line's, as matplotlib takes it, in a file."""
        if self.marked:
            return {"color": FIXED.line(i), "marker": FIXED.marker(i), "mew": 0}
        return {"color": FIXED.line(i), "linestyle": FIXED.dash(i)}

    def markdown(self) -> str:
        """A section that shows the .png file beside the text."""
        names = ", ".join(name for _, name in self.keys)
        caption = self.caption + (f" ({names})" if names else "")
        shown = picture(self.title, f"{self.name}.png") if self.draw else NO_DATA
        return f"## {plain(self.title)}\n\n{shown}\n\n{plain(caption)}"


def shades(count: int) -> list[float]:
    """Opacities of ``count`` lines of one colour, the last the fullest."""
    return [0.35 + 0.65 * (i + 1) / count for i in range(count)]


def _drawn(
    draw: Callable[[Any], None],
    size: tuple[int, int],
    salt: str,
    settings: dict[str, Any],
    **saving: Any,
) -> bytes:
    """What ``draw`` puts on axes, saved; the same bytes each time."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    # Names of runs and families are no formulas, whatever dollars they hold.
    every: dict[Any, Any] = {"svg.hashsalt": salt, "text.parse_math": False, "font.family": [FONT]}
    with matplotlib.rc_context(every | settings):
        canvas = Canvas((size[0] / 72, size[1] / 72), layout="constrained")  # 72 units an inch
        draw(canvas.add_subplot())
        out = BytesIO()
        canvas.savefig(out, **saving)
    return out.getvalue()


def _element(svg: str, name: str, attributes: str) -> str:
    """From a matplotlib file to an element: no prolog or metadata, own ids, the page's colours."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('id="', f'id="{name}-')
    svg = re.sub(r"\n\s*", "\n", svg)
    for placeholder, colour in PLACEHOLDERS.items():
        svg = svg.replace(placeholder, colour)
    head, _, rest = svg.partition(">")
    (box,) = re.findall(r'viewBox="[^"]*"', head)
    return f"<svg {attributes} {box}>{rest}"
