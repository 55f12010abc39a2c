"""Figures and a table of which family is best at each budget."""

from typing import Any

import numpy as np

from gam_scale.report.axes import finish
from gam_scale.report.dots import draw_dots
from gam_scale.report.figure import Figure
from gam_scale.report.lines import SMALL
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import scientific
from gam_scale.report.page import Beside, Part
from gam_scale.report.table import Table
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.standing import Best, Standing, standings

STYLE: dict[str, Any] = {"lw": 1.8, "ms": 6.5, "mew": 0}


def standing(analysis: Analysis) -> list[Part]:
    """Return figures and a table of the best loss of each family at each budget.

    The result is empty if no budget has two families.
    """
    found = standings(analysis.measured)
    return [_figures(analysis, found), _table(analysis, found)] if found else []


def _figures(analysis: Analysis, found: list[Standing]) -> Beside:
    names = [name for name, _ in analysis.measured]
    keys = tuple(enumerate(names))
    caption = "the least measured loss of each family within a budget; ring: the least of all; "
    caption += "faint: all runs"

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, (name, points) in enumerate(analysis.measured):
            style: dict[str, Any] = {"color": palette.line(i), "marker": palette.marker(i)}
            draw_dots(axes, palette, points.flops, points.loss, ms=3, alpha=0.3, **style)
            axes.plot(*_line(found, name), **style, **STYLE)
        for standing in found:
            ring = {"mec": palette.ink, "mfc": "none", "ms": 12, "mew": 1.2, "marker": "o"}
            axes.plot([standing.flops], [standing.best[0].loss], **ring)
        low = [best.loss for standing in found for best in standing.best]
        margin = 0.08 * (max(low) - min(low)) or 0.1
        axes.set_ylim(min(low) - margin, max(low) + margin)
        finish(axes, palette, True, "FLOPs", "loss, nats per token", scientific)

    def draw_behind(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, name in enumerate(names):
            style: dict[str, Any] = {"color": palette.line(i), "marker": palette.marker(i)}
            c, loss = _line(found, name)
            best = [s.best[0].loss for s in found if s.flops in set(c.tolist())]
            axes.plot(c, loss - np.array(best), **style, **STYLE)
        finish(axes, palette, True, "FLOPs", "nats behind the best", scientific)

    title = "The best of each family at each budget"
    behind = "the same, less the least loss of any family within the budget"
    options: dict[str, Any] = {"keys": keys, "size": SMALL, "narrow": None, "marked": True}
    return Beside(
        [
            Figure("best", title, caption, draw, **options),
            Figure("behind", "Behind the best", behind, draw_behind, **options),
        ]
    )


def _table(analysis: Analysis, found: list[Standing]) -> Table:
    rows = []
    for standing in found:
        losses = {best.name: _loss(best) for best in standing.best}
        cells = [losses.get(name, "") for name, _ in analysis.measured]
        rows.append([scientific(standing.flops), standing.best[0].name, *cells])
    header = ["FLOPs", "best", *(name for name, _ in analysis.measured)]
    note = (
        "The least measured loss within each budget, in nats per token, each size's mean over its "
        "seeds; no law is asked."
    )
    if any(best.late is not None for standing in found for best in standing.best):
        note += " After the stroke, that size's loss at late positions of the context."
    return Table("The least loss at each budget", header, rows, note)


def _loss(best: Best) -> str:
    return f"{best.loss:.3f}" + ("" if best.late is None else f" / {best.late:.3f}")


def _line(found: list[Standing], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return FLOPs and least loss of one family at its budgets."""
    pairs = [(s.flops, b.loss) for s in found for b in s.best if b.name == name]
    return np.array([c for c, _ in pairs]), np.array([loss for _, loss in pairs])
