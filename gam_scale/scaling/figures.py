"""Figures of an analysis: the runs, the laws fitted to them, and predictions beyond the runs."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gam_scale.report.axes import finish, label
from gam_scale.report.dots import draw_dots
from gam_scale.report.figure import Figure, shades
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import large, scientific
from gam_scale.scaling.analysis import Analysis, Family
from gam_scale.scaling.extrapolation import OPTIMAL
from gam_scale.scaling.isoflop import IsoFlop
from gam_scale.scaling.law import Law
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points

MOST_LABELS = 8
MOST_SIZES = 12  # most sizes that have a line each
BANDS = 300  # most refits that a band is drawn from


def figures(analysis: Analysis) -> list[Figure]:
    """Return every figure that the analysis has data for."""
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
        every = np.unique(points.params)
        sizes = every[np.unique(np.linspace(0, len(every) - 1, MOST_SIZES).astype(int))]
        span, last = np.ptp(points.loss), np.inf
        rest = points.take(~np.isin(points.params, sizes))
        draw_dots(axes, palette, rest.tokens, rest.loss, color=palette.line(i), alpha=0.2, ms=3)
        for n, shade in zip(sizes, shades(len(sizes)), strict=True):
            style: dict[str, Any] = {"color": palette.line(i), "alpha": shade}
            rows = np.flatnonzero(points.params == n)
            rows = rows[np.argsort(points.tokens[rows])]
            d, loss = points.tokens[rows], points.loss[rows]
            draw_dots(axes, palette, d, loss, **style)
            if law is not None:
                d = np.geomspace(d.min() / 1.3, d.max() * 1.3, 100)
                loss = law.loss(n, d)
            axes.plot(d, loss, lw=1.6, **style)
            if abs(last - loss[-1]) > 0.035 * span:  # else labels would overlap
                label(axes, palette, d[-1], loss[-1], large(n))
                last = loss[-1]
        finish(axes, palette, narrow, "tokens", "loss, nats per token", large)

    lines = "the fitted law" if law is not None else "from run to run; no law fits"
    caption = f"dots: runs; lines: {lines}, one for each number of parameters"
    if (sizes := len(np.unique(points.params))) > MOST_SIZES:
        caption += f" of {MOST_SIZES} out of {sizes}"
    return Figure(f"curves{suffix}", f"Loss against tokens{named}", caption, draw)


def _parabolas(points: Points, isoflop: IsoFlop, i: int, named: str, suffix: str) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        parabolas = isoflop.parabolas
        for j, (parabola, shade) in enumerate(zip(parabolas, shades(len(parabolas)), strict=True)):
            style: dict[str, Any] = {"color": palette.line(i), "alpha": shade}
            n = np.geomspace(parabola.low / 1.15, parabola.high * 1.15, 80)
            rows = parabola.rows
            axes.plot(n, parabola.at(n), lw=1.6, **style)
            draw_dots(axes, palette, points.params[rows], points.loss[rows], **style)
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
        axes.set(xscale="log", yscale="log")  # before labels, whose gaps depend on scales
        lines = axes.contour(
            grid_d, grid_n, loss, levels=levels, colors=[palette.quiet], linewidths=0.9
        )
        axes.clabel(lines, fmt="%.2f", fontsize=9, colors=[palette.quiet], inline_spacing=3)
        best = optimum.flops_per_pair * n.min() * d.min(), optimum.flops_per_pair * n[-1] * d[-1]
        c = np.geomspace(*best, 60)
        axes.plot(optimum.tokens(c), optimum.params(c), lw=2, color=palette.line(i))
        style: dict[str, Any] = {"color": palette.ink, "alpha": 0.7, "ms": 5, "log_y": True}
        draw_dots(axes, palette, points.tokens, points.params, **style)
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
            style: dict[str, Any] = {"color": palette.line(i), "marker": palette.marker(i)}
            _over_budgets(axes, family, Optimum.params, style)
            for p in family.isoflop.minima:
                axes.plot([p.flops], [p.params], ms=7, mfc="none", mew=1.3, **style)
        for target in analysis.settings.targets:
            axes.axhline(target, color=palette.quiet, lw=1, ls=(0, (1, 3)))
            left = min(float(f.points.flops.min()) for f in families)
            label(axes, palette, left, target, large(target), above=True)
        finish(axes, palette, narrow, "FLOPs", "parameters", scientific, large, log_y=True)

    caption = "parameters that are best for a budget; solid where runs were, dashed beyond; band: "
    caption += "95%; hollow markers: isoFLOP minima"
    return Figure("frontier", "Best size against compute", caption, draw, keys, marked=True)


def _losses(families: list[Family], analysis: Analysis, keys: Any) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, family in enumerate(families):
            style: dict[str, Any] = {"color": palette.line(i), "marker": palette.marker(i)}
            _over_budgets(axes, family, Optimum.loss, style)
            points = family.points
            draw_dots(axes, palette, points.flops, points.loss, ms=3.5, alpha=0.45, **style)
            for e in family.extrapolations:
                if e.rule == OPTIMAL and e.is_known:
                    axes.plot([e.flops], [e.loss], ms=8, mfc="none", mew=1.3, **style)
                    if i == 0:
                        label(axes, palette, e.flops, e.loss, large(e.params), above=True)
        finish(axes, palette, narrow, "FLOPs", "loss, nats per token", scientific)

    caption = "line: the best loss of a budget, dashed beyond the runs; band: 95%; dots: runs; "
    caption += "hollow: models that were not trained"
    return Figure("loss-compute", "Loss against compute", caption, draw, keys, marked=True)


def _held_out(families: list[Family], keys: Any) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, family in enumerate(families):
            held = family.held_out
            if held is None:
                continue
            style: dict[str, Any] = {
                "color": palette.line(i),
                "marker": palette.marker(i),
                "ms": 5.5,
            }
            off = 100 * held.fitted_errors
            draw_dots(axes, palette, held.rest.params, off, alpha=0.35, **style)
            draw_dots(axes, palette, held.params, 100 * held.errors, **style)
        axes.axhline(0, color=palette.quiet, lw=1)
        finish(axes, palette, narrow, "parameters", "predicted over measured, %", large)

    what = next(f.held_out.description for f in families if f.held_out)
    caption = f"error of a law fitted without {what}; faint: runs it was fitted to; "
    caption += "full: runs it had not seen"
    return Figure("held-out", f"Predicting {what}", caption, draw, keys, marked=True)


def _over_budgets(
    axes: Any,
    family: Family,
    what: Callable[[Optimum, np.ndarray], np.ndarray],
    style: dict[str, Any],
) -> None:
    """Draw what a family's law predicts for each budget, with a band; dashed beyond the runs."""
    c = np.geomspace(family.points.flops.min(), 1.5 * family.farthest, 120)
    y = what(family.optimum, c)
    inside = c <= family.points.flops.max()
    _band(axes, family, c, what, style["color"])
    every = {"markevery": 0.25, "ms": 5.5, "mew": 0}
    axes.plot(c[inside], y[inside], lw=2, **style, **every)
    axes.plot(c[~inside], y[~inside], lw=1.6, ls=(0, (5, 3)), **style, **every)


def _band(axes: Any, family: Family, c: np.ndarray, what: Any, colour: str) -> None:
    k = family.optimum.flops_per_pair
    laws = [Optimum(laws[0], k) for laws in family.bootstrap.laws[:BANDS]]
    if not laws:
        return
    values = np.array([what(o, c) if o.exists else np.full(len(c), np.nan) for o in laws])
    ends = [family.bootstrap.between(column) for column in values.T]
    if all(ends):
        low, high = np.array(ends).T
        axes.fill_between(c, low, high, color=colour, alpha=0.16, lw=0)
