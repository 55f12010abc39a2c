"""Figures of an analysis: runs, the laws fitted to them, and what those say beyond the runs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gam_scale.report.axes import finish, label
from gam_scale.report.figure import Figure, shades
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import large, scientific
from gam_scale.scaling.analysis import Analysis, Family
from gam_scale.scaling.isoflop import IsoFlop
from gam_scale.scaling.law import Law
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points

MOST_LABELS = 8
BANDS = 300  # refits that a band is drawn from


def figures(analysis: Analysis) -> list[Figure]:
    """Every figure that the analysis has data for."""
    families = analysis.families
    several = len(analysis.measured) > 1
    keys = tuple((i, f.name) for i, f in enumerate(families)) if several else ()
    drawn = []
    for i, family in enumerate(families):
        named = f": {family.name}" if several else ""
        suffix = f"-{i}" if several else ""
        sizes = np.unique(family.points.params)
        if len(family.points) >= 2 * len(sizes):  # else a size has one budget, and no curve
            drawn.append(_curves(family.points, family.fit.law, i, named, suffix))
        if family.isoflop.parabolas:
            drawn.append(_parabolas(family.points, family.isoflop, i, named, suffix))
        drawn.append(_surface(family, i, named, suffix))
    for i, left in enumerate(analysis.left_out, len(families)):
        drawn.append(_curves(left.points, None, i, f": {left.name}", f"-{i}"))
        if left.isoflop.parabolas:
            drawn.append(_parabolas(left.points, left.isoflop, i, f": {left.name}", f"-{i}"))
    drawn += [_frontier(families, analysis, keys), _losses(families, analysis, keys)]
    if any(f.held_out for f in families):
        drawn.append(_held_out(families, keys))
    return drawn


def _curves(points: Points, law: Law | None, i: int, named: str, suffix: str) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        sizes = np.unique(points.params)
        span, last = np.ptp(points.loss), np.inf
        for n, shade in zip(sizes, shades(len(sizes)), strict=True):
            style = {"color": palette.line(i), "alpha": shade}
            rows = np.flatnonzero(points.params == n)
            rows = rows[np.argsort(points.tokens[rows])]
            d, loss = points.tokens[rows], points.loss[rows]
            axes.plot(d, loss, "o", ms=4.5, mew=0, **style)
            if law is not None:
                d = np.geomspace(d.min() / 1.3, d.max() * 1.3, 100)
                loss = law.loss(n, d)
            axes.plot(d, loss, lw=1.6, **style)
            if abs(last - loss[-1]) > 0.035 * span:  # labels would lie on one another
                label(axes, palette, d[-1], loss[-1], large(n))
                last = loss[-1]
        finish(axes, palette, narrow, "tokens", "loss, nats per token", large)

    lines = "the fitted law" if law is not None else "from run to run; no law fits"
    caption = f"dots: runs; lines: {lines}, one for each number of parameters"
    return Figure(f"curves{suffix}", f"Loss against tokens{named}", caption, draw)


def _parabolas(points: Points, isoflop: IsoFlop, i: int, named: str, suffix: str) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        parabolas = isoflop.parabolas
        for j, (parabola, shade) in enumerate(zip(parabolas, shades(len(parabolas)), strict=True)):
            style = {"color": palette.line(i), "alpha": shade}
            n = np.geomspace(parabola.low / 1.15, parabola.high * 1.15, 80)
            rows = parabola.rows
            axes.plot(n, parabola.at(n), lw=1.6, **style)
            axes.plot(points.params[rows], points.loss[rows], "o", ms=4.5, mew=0, **style)
            if parabola.is_inside:
                axes.plot([parabola.params], [parabola.loss], "D", ms=6, mew=0, color=palette.ink)
            if j % -(-len(parabolas) // MOST_LABELS) == 0:
                label(axes, palette, n[-1], float(parabola.at(n[-1])), scientific(parabola.flops))
        finish(axes, palette, narrow, "parameters", "loss, nats per token", large)

    caption = "runs of equal FLOPs (at the line's end) and a parabola through each; diamond: its "
    caption += "minimum, where that lies between sizes that were trained"
    return Figure(f"isoflop{suffix}", f"Best size for a budget{named}", caption, draw)


def _surface(family: Family, i: int, named: str, suffix: str) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        points, optimum = family.points, family.optimum
        n = np.geomspace(points.params.min() / 3, points.params.max() * 10, 90)
        d = np.geomspace(points.tokens.min() / 3, points.tokens.max() * 10, 90)
        grid_d, grid_n = np.meshgrid(d, n)
        loss = optimum.law.loss(grid_n, grid_d)
        levels = np.quantile(loss, np.linspace(0.02, 0.95, 6 if narrow else 10))
        axes.set(xscale="log", yscale="log")  # before contours are labelled: gaps depend on it
        lines = axes.contour(
            grid_d, grid_n, loss, levels=levels, colors=[palette.quiet], linewidths=0.9
        )
        axes.clabel(lines, fmt="%.2f", fontsize=9, colors=[palette.quiet], inline_spacing=3)
        best = optimum.flops_per_pair * n.min() * d.min(), optimum.flops_per_pair * n[-1] * d[-1]
        c = np.geomspace(*best, 60)
        axes.plot(optimum.tokens(c), optimum.params(c), lw=2, color=palette.line(i))
        axes.plot(points.tokens, points.params, "o", ms=5, mew=0, color=palette.ink, alpha=0.7)
        axes.set_xlim(d[0], d[-1])
        axes.set_ylim(n[0], n[-1])
        finish(axes, palette, narrow, "tokens", "parameters", large, large, log_y=True)
        axes.grid(False)

    caption = "contours: fitted loss in nats per token; dots: runs; line: the best size and data "
    caption += "for each amount of compute"
    return Figure(f"surface{suffix}", f"Fitted surface{named}", caption, draw)


def _frontier(families: list[Family], analysis: Analysis, keys: Any) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, family in enumerate(families):
            colour = palette.line(i)
            _over_budgets(axes, family, analysis, Optimum.params, colour)
            for p in family.isoflop.minima:
                axes.plot([p.flops], [p.params], "D", ms=5.5, mew=0, color=colour)
        for target in analysis.settings.targets:
            axes.axhline(target, color=palette.quiet, lw=1, ls=(0, (1, 3)))
            left = min(float(f.points.flops.min()) for f in families)
            label(axes, palette, left, target, large(target), above=True)
        finish(axes, palette, narrow, "FLOPs", "parameters", scientific, large, log_y=True)

    caption = "parameters that are best for a budget; solid where runs were, dashed beyond; band: "
    caption += "95%; diamonds: isoFLOP minima"
    return Figure("frontier", "Best size against compute", caption, draw, keys)


def _losses(families: list[Family], analysis: Analysis, keys: Any) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, family in enumerate(families):
            colour = palette.line(i)
            _over_budgets(axes, family, analysis, Optimum.loss, colour)
            points = family.points
            axes.plot(points.flops, points.loss, "o", ms=3.5, mew=0, color=colour, alpha=0.45)
            for target in analysis.settings.targets:
                at = float(family.optimum.flops(target))
                axes.plot([at], [float(family.optimum.loss(at))], "s", ms=6, mew=0, color=colour)
                if i == 0:
                    height = float(family.optimum.loss(at))
                    label(axes, palette, at, height, large(target), above=True)
        finish(axes, palette, narrow, "FLOPs", "loss, nats per token", scientific)

    caption = "line: the best loss of a budget, dashed beyond the runs; band: 95%; dots: runs; "
    caption += "squares: models that were not trained"
    return Figure("loss-compute", "Loss against compute", caption, draw, keys)


def _held_out(families: list[Family], keys: Any) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, family in enumerate(families):
            held = family.held_out
            if held is None:
                continue
            rest = family.points.params < held.params.min()
            known = family.points.take(rest)
            off = 100 * (held.law.loss(known.params, known.tokens) / known.loss - 1)
            style = {"color": palette.line(i), "ms": 5}
            axes.plot(known.params, off, "o", mew=0, alpha=0.35, **style)
            axes.plot(held.params, 100 * held.errors, "o", mew=0, **style)
        axes.axhline(0, color=palette.quiet, lw=1)
        finish(axes, palette, narrow, "parameters", "predicted over measured, %", large)

    caption = "error of a law fitted without the largest models; faint: runs it was fitted to; "
    caption += "full: runs it had not seen"
    return Figure("held-out", "Predicting the largest models", caption, draw, keys)


def _budgets(family: Family, analysis: Analysis) -> np.ndarray:
    """FLOPs from the smallest run to the largest model extrapolated to."""
    ends = [float(family.optimum.flops(t)) for t in analysis.settings.targets]
    top = max([float(family.points.flops.max()), *ends])
    return np.geomspace(family.points.flops.min(), 1.5 * top, 120)


def _over_budgets(
    axes: Any,
    family: Family,
    analysis: Analysis,
    what: Callable[[Optimum, np.ndarray], np.ndarray],
    colour: str,
) -> None:
    """What a family's law says of each budget, with its band."""
    c = _budgets(family, analysis)
    _band(axes, family, c, what, colour)
    _measured(axes, family, c, what(family.optimum, c), colour)


def _measured(axes: Any, family: Family, c: np.ndarray, y: np.ndarray, colour: str) -> None:
    inside = c <= family.points.flops.max()
    axes.plot(c[inside], y[inside], lw=2, color=colour)
    axes.plot(c[~inside], y[~inside], lw=1.6, color=colour, ls=(0, (5, 3)))


def _band(axes: Any, family: Family, c: np.ndarray, what: Any, colour: str) -> None:
    k = family.optimum.flops_per_pair
    laws = [Optimum(laws[0], k) for laws in family.bootstrap.laws[:BANDS]]
    draws = np.array([what(o, c) for o in laws if o.exists])
    if len(draws) < 50:
        return
    ends = [family.bootstrap.between(column) for column in draws.T]
    if all(ends):
        low, high = np.array(ends).T
        axes.fill_between(c, low, high, color=colour, alpha=0.16, lw=0)
