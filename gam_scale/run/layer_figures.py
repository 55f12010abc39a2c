"""Figures of what a run's layers did while it trained, from layers.jsonl."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gam_scale.report.figure import Figure, shades
from gam_scale.report.lines import Series, line_figure
from gam_scale.report.panels import Panel, panel_figure
from gam_scale.run.records import Record

SIZE, NARROW = (440, 260), (350, 240)
MAX_SHOWN = 8
"""Most layers in a figure, and most heads of each; of more, an even selection is drawn."""
BANDS = 3
"""Most layers in a figure for each to have a band of quantiles."""

TITLES = {
    "horizon": ("Horizons", "tokens over which a memory's gates forget"),
    "beta": ("Writing strength", "beta, the share of a value that a token replaces"),
    "erase": ("Erase gates", "the share of what is found that a token takes away, by channel"),
    "write": ("Write gates", "the share of its value that a token adds, by channel"),
    "router_entropy": ("Routers", "entropy, in nats, of how a token divides what it writes"),
    "slots_used": ("Slots", "share of them that the tokens of a row write to"),
    "write_horizon": ("Horizons of writes", "tokens written to a slot after which it forgets"),
    "output_gate": ("Output gates", "what a head's read-out is multiplied by before its output"),
    "state_norm": (
        "States",
        "length of a head's state after the tokens looked at, 1,024 of a row or fewer",
    ),
    "memory_gate": ("Memory gates", "how far they open, from 0 to 1"),
    "conv_gate": ("Convolution gates", "how far they open, from 0 to 1"),
    "activation": ("Activations", "root mean square of a layer's output, per token"),
    "gradient": ("Gradients", "their length in a layer's output, per token"),
}
"""Title and caption of statistics, by name; any other statistic has its name as its title."""


def layer_figures(records: Sequence[Record]) -> list[Figure]:
    """Return a figure of each statistic over the steps, with medians over the tokens.

    A statistic with heads has a panel for each layer, any other a line for each layer.
    """
    if not records:
        return []
    names = {name: None for record in records for layer in record["layers"] for name in layer}
    known = [name for name in TITLES if name in names]
    return [_figure(name, records) for name in [*known, *sorted(names.keys() - TITLES.keys())]]


def _figure(name: str, records: Sequence[Record]) -> Figure:
    layers = [each for record in records for each in enumerate(record["layers"])]
    shown = _some(sorted({number for number, layer in layers if name in layer}))
    title, caption = TITLES.get(name, (name.replace("_", " "), "as the layer says"))
    file = f"layers-{name.replace('_', '-')}"
    if any("heads" in layer.get(name, {}) for _, layer in layers):
        caption += "; median of each head, the first one faint, the last one full"
        return panel_figure(file, title, caption, [_panel(name, i, records) for i in shown])
    has_band = len(shown) <= BANDS
    series = [_series(name, layer, records, band=has_band) for layer in shown]
    caption += "; median" + (" and 5% to 95%" if has_band else "")
    return line_figure(file, title, caption, series, SIZE, narrow_size=NARROW, may_log=True)


def _panel(name: str, layer: int, records: Sequence[Record]) -> Panel:
    """Return a layer's panel with a line per head, or a single line if the layer has no heads."""
    counts = [len(_found(record["layers"], layer, name).get("heads", [])) for record in records]
    heads = _some(range(max(counts)))
    if not heads:
        return Panel(f"layer {layer + 1}", [_series(name, layer, records, band=True)])
    steps, lines = [record["step"] for record in records], []
    for head, shade in zip(heads, shades(len(heads)), strict=True):
        medians = [_median(record["layers"], layer, name, head) for record in records]
        lines.append(Series("", steps, medians, opacity=shade, smooth=False))
    return Panel(f"layer {layer + 1}", lines)


def _some(of: Sequence[int]) -> list[int]:
    """Return at most :data:`MAX_SHOWN` elements, evenly spread from the first to the last."""
    if len(of) <= MAX_SHOWN:
        return list(of)
    return [of[round(i * (len(of) - 1) / (MAX_SHOWN - 1))] for i in range(MAX_SHOWN)]


def _series(name: str, layer: int, records: Sequence[Record], *, band: bool) -> Series:
    rows = [_found(record["layers"], layer, name).get("all") for record in records]
    low, middle, high = zip(*map(_numbers, rows), strict=True)
    steps = [record["step"] for record in records]
    series = Series(f"layer {layer + 1}", steps, middle, smooth=False)
    return replace(series, low=low, high=high) if band else series


def _median(layers: Sequence[Any], layer: int, name: str, head: int) -> float:
    heads = _found(layers, layer, name).get("heads", [])
    return _numbers(heads[head] if head < len(heads) else None)[1]


def _numbers(quantiles: Sequence[float | None] | None) -> list[float]:
    """Return quantiles, NaN for missing ones, as in records from before a setting was changed."""
    return [math.nan if value is None else value for value in quantiles or [None] * 3]


def _found(layers: Sequence[Any], layer: int, name: str) -> dict[str, Any]:
    return layers[layer].get(name, {}) if layer < len(layers) else {}
