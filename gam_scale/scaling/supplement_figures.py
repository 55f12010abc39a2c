"""Figures and tables of a report's supplement, beside those of the laws."""

import math
from typing import Any

import numpy as np

from gam_scale.report.axes import finish, label, ticks_x
from gam_scale.report.figure import Figure, shades
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import large, ranged, span
from gam_scale.report.table import Table
from gam_scale.scaling.contexts import context_table
from gam_scale.scaling.forecasts import forecast_table
from gam_scale.scaling.supplement import Curve, Supplement


def supplement_figures(supplement: Supplement, families: list[str]) -> list[Figure]:
    """Return every figure that there is data for; ``families`` are in order of their colours."""
    drawn = []
    for i, name in enumerate(families):
        curves = [curve for curve in supplement.curves if curve.family == name]
        if curves:
            named, suffix = (f": {name}", f"-{i}") if len(families) > 1 else ("", "")
            drawn.append(_training(curves, i, named, suffix))
    if supplement.rates:
        drawn.append(_rates(supplement, families))
    if supplement.positions:
        drawn.append(_positions(supplement, families))
    return drawn


def supplement_tables(supplement: Supplement) -> list[Table]:
    """Return every table that there is data for."""
    tables = []
    if supplement.rates:
        tables.append(_rate_table(supplement))
    if supplement.forecasts:
        tables.append(forecast_table(supplement.forecasts))
    if supplement.contexts:
        tables.append(context_table(supplement.contexts))
    if supplement.positions:
        tables.append(_position_table(supplement))
    if supplement.recall:
        tables.append(_recall_table(supplement))
    return tables


def _training(curves: list[Curve], i: int, named: str, suffix: str) -> Figure:
    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        sizes = sorted({curve.params for curve in curves})
        opacity = dict(zip(sizes, shades(len(sizes)), strict=True))
        for curve in curves:
            style = {"color": palette.line(i), "alpha": opacity[curve.params], "lw": 1.4}
            axes.plot(curve.tokens, curve.loss, **style)
        last = math.inf
        ends = [
            max((c for c in curves if c.params == n), key=lambda c: c.tokens[-1]) for n in sizes
        ]
        span = np.ptp([loss for curve in curves for loss in curve.loss])
        for n, curve in sorted(zip(sizes, ends, strict=True), key=lambda pair: -pair[1].loss[-1]):
            if last - curve.loss[-1] > 0.04 * span:  # else labels would overlap
                label(axes, palette, curve.tokens[-1], curve.loss[-1], large(n))
                last = curve.loss[-1]
        finish(axes, palette, narrow, "tokens", "training loss, nats per token", large)

    caption = "loss while training, one line for each number of parameters; smaller budgets branch "
    caption += "off the longest run where their learning rate decays"
    return Figure(f"training{suffix}", f"Training curves{named}", caption, draw)


def _rates(supplement: Supplement, families: list[str]) -> Figure:
    # Families have their colours from their order; one that is not in ``families`` has the next.
    others = dict.fromkeys(r.family for r in supplement.rates if r.family not in families)
    names = [*families, *others]
    drawn = [r for r in supplement.rates if 1.0 in r.multipliers]
    there = {r.family for r in drawn}
    keys = tuple((i, name) for i, name in enumerate(names) if name in there)

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for colour, name in keys:
            sizes = [r for r in drawn if r.family == name]  # the smallest first
            for rates, dash in zip(sizes, ("-", "--"), strict=False):
                base = rates.losses[rates.multipliers.index(1.0)]
                more = [loss - base for loss in rates.losses]
                style = {"color": palette.line(colour), "marker": palette.marker(colour)}
                axes.plot(rates.multipliers, more, ls=dash, lw=1.8, ms=6, mew=0, **style)
        x_label, form = "times the learning rate of the sweep", "{:g}".format
        finish(axes, palette, narrow, x_label, "nats more than at the sweep's rate", form)
        ticks_x(axes, sorted({m for rates in drawn for m in rates.multipliers}), "{:g}".format)

    caption = "the smallest model on the smallest budget, and, dashed, the largest on the largest"
    return Figure(
        "learning-rate", "Sensitivity to the learning rate", caption, draw, keys, marked=True
    )


def _positions(supplement: Supplement, families: list[str]) -> Figure:
    # The name of a run of tools/sweep.py begins with its family's name, which gives its colour.
    own = [
        next((i for i, name in enumerate(families) if p.name.startswith(f"{name}-d")), -1)
        for p in supplement.positions
    ]
    colours = own if len(set(own) - {-1}) == len(own) else range(len(own))
    keys = tuple((i, p.name) for i, p in zip(colours, supplement.positions, strict=True))

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        ends: set[int] = set()
        for i, p in zip(colours, supplement.positions, strict=True):
            # A bin is drawn at its middle on a logarithmic axis.
            x = [math.sqrt(a * b) for a, b in zip(p.first, p.last, strict=True)]
            style = {"color": palette.line(i), "marker": palette.marker(i)}
            axes.plot(x, p.mean, lw=1.8, ms=5.5, mew=0, **style)
            axes.fill_between(x, p.low, p.high, color=palette.line(i), alpha=0.16, lw=0)
            ends |= set(p.last)
        finish(axes, palette, narrow, "tokens of context", "loss, nats per token", large)
        ticks_x(axes, sorted(ends)[:: 2 if narrow else 1])

    caption = "held-out loss by the number of tokens that the prediction sees; band: 95%"
    return Figure("by-position", "Loss by position", caption, draw, keys, marked=True)


def _rate_table(supplement: Supplement) -> Table:
    columns = sorted({m for rates in supplement.rates for m in rates.multipliers})
    rows = []
    for rates in supplement.rates:
        known = dict(zip(rates.multipliers, rates.losses, strict=True))
        base = dict(zip(rates.multipliers, rates.lrs, strict=True)).get(1.0)
        cells = [f"{known[m]:.3f}" if m in known else "" for m in columns]
        size = [rates.family, large(rates.params), f"{base:.2g}" if base else ""]
        rows.append([*size, *cells])
    header = ["family", "params", "rate at 1", *(f"times {m:g}" for m in columns)]
    note = (
        "Nats per token at multiples of the sweep's learning rate. A family whose best is not at 1 "
        "could do better than its law here says."
    )
    return Table("Sensitivity to the learning rate", header, rows, note)


def _position_table(supplement: Supplement) -> Table:
    spans = {ends for p in supplement.positions for ends in zip(p.first, p.last, strict=True)}
    rows = []
    for first, last in sorted(spans):
        cells = []
        for p in supplement.positions:
            means = dict(zip(zip(p.first, p.last, strict=True), p.mean, strict=True))
            cells.append(f"{means[first, last]:.3f}" if (first, last) in means else "")
        rows.append([span(first, last), *cells])
    header = ["tokens of context", *(p.name for p in supplement.positions)]
    return Table("Loss by position", header, rows, "Nats per token of held-out text.")


def _recall_table(supplement: Supplement) -> Table:
    tasks = list(dict.fromkeys(task for r in supplement.recall for task in r.scores))
    rows = []
    for r in supplement.recall:
        scores = (r.scores.get(task) for task in tasks)
        rows.append([r.name, *(ranged(s[0], s[1:]) if s else "" for s in scores)])
    note = (
        "Accuracy of models trained on multi-query associative recall alone, not of the sweep's; "
        "pairs in tokens of text, 95% intervals."
    )
    return Table("Associative recall", ["memory", *tasks], rows, note)
