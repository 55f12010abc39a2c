"""Colours, dashes and markers that tell lines apart, also for readers who see no colours."""

from dataclasses import dataclass
from html import escape
from typing import Any

# Eight colours that stay apart for most colour-blind readers (after Okabe and Ito), by scheme.
LIGHT = ("#2f6db5", "#c4561c", "#1b7f5c", "#8a55a8", "#9a7400", "#b83f77", "#2b8aa8", "#646b76")
DARK = ("#78aeea", "#ee9a62", "#5cc4a0", "#c496e0", "#d9b64a", "#f08cb4", "#70c8e2", "#9299a4")

_DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 2),
    (2, 1.5),
    (7, 2, 1.5, 2),
    (3.5, 1.2, 1.2, 1.2, 1.2, 1.2),
)
"""Lengths of dashes and gaps, in widths of the line; the empty tuple is a solid line."""
_MARKERS = "os^DvPX*<"
_SHAPES = {
    "o": "M-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z",
    "s": "M-3-3h6v6h-6z",
    "^": "M0-3.8L3.6 2.8h-7.2z",
    "D": "M0-4L4 0L0 4L-4 0z",
    "v": "M0 3.8L3.6-2.8h-7.2z",
    "P": "M-1.3-3.8h2.6v2.5h2.5v2.6h-2.5v2.5h-2.6v-2.5h-2.5v-2.6h2.5z",
    "X": "M-3.6-2L-2-3.6 0-1.6 2-3.6 3.6-2 1.6 0 3.6 2 2 3.6 0 1.6-2 3.6-3.6 2-1.6 0z",
    "*": "M0-4.4L1.1-1.4H4.2L1.7.5L2.6 3.5L0 1.7L-2.6 3.5L-1.7.5L-4.2-1.4H-1.1z",
    "<": "M-3.8 0L2.8 3.6v-7.2z",
}
"""SVG paths of the markers, centred on 0 and about 8 by 8 units large."""


@dataclass(frozen=True)
class Palette:
    """Colours of a figure, and the dashes and markers of its lines."""

    ink: str
    quiet: str
    rule: str
    lines: tuple[str, ...]

    def line(self, i: int) -> str:
        """Return the i-th line colour; after the last, colours repeat."""
        return self.lines[i % len(self.lines)]

    def dash(self, i: int) -> Any:
        """Return the i-th line's dashes in matplotlib's form."""
        lengths = _dash(i)
        return (0, lengths) if lengths else "-"

    def marker(self, i: int) -> str:
        """Return matplotlib's name of the i-th line's marker."""
        return _marker(i)


def swatch(i: int, *, marked: bool, dashed: bool) -> str:
    """Return a sample of the i-th line as an ``<svg>`` element, which also prints in colour."""
    colour = f"var(--line{i % len(LIGHT)})"
    lengths = " ".join(f"{2 * length:g}" for length in _dash(i)) if dashed else ""
    broken = f' stroke-dasharray="{lengths}"' if lengths else ""
    shape = f'<path d="{escape(_SHAPES[_marker(i)])}" fill="{colour}"/>' if marked else ""
    line = f'<path d="M-14 0H14" stroke="{colour}" stroke-width="2"{broken}/>'
    return f'<svg viewBox="-14 -5 28 10" aria-hidden="true">{line}{shape}</svg>'


def _dash(i: int) -> tuple[float, ...]:
    # Lines that repeat a colour have other dashes.
    return _DASHES[(i + i // len(LIGHT)) % len(_DASHES)]


def _marker(i: int) -> str:
    return _MARKERS[i % len(_MARKERS)]
