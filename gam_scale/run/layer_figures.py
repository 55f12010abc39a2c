"""Pictures of what a run's layers did while it trained, from layers.jsonl."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gam_scale.report.figure import Figure
from gam_scale.report.lines import Series, line_figure
from gam_scale.run.records import Record

SIZE, NARROW = (440, 260), (350, 240)
MOST = 8
"""Layers in a picture; of more, as many are taken from the first to the last."""
BANDS = 3
"""Layers up to which each has its band."""

TITLES = {
    "horizon": ("Horizons", "tokens over which a memory's gates forget"),
    "beta": ("Writing strength", "beta, the share of a value that a token replaces"),
    "memory_gate": ("Memory gates", "how far they open, from 0 to 1"),
    "conv_gate": ("Convolution gates", "how far they open, from 0 to 1"),
    "activation": ("Activations", "root mean square of a layer's output, per token"),
    "gradient": ("Gradients", "their length in a layer's output, per token"),
}
"""Of statistics by name; others are called by it."""


def layer_figures(records: Sequence[Record]) -> list[Figure]:
    """A picture of each statistic: the median over the tokens of each layer, by step."""
    if not records:
        return []
    names = {name: None for record in records for layer in record["layers"] for name in layer}
    known = [name for name in TITLES if name in names]
    return [_figure(name, records) for name in [*known, *sorted(names.keys() - TITLES.keys())]]


def _figure(name: str, records: Sequence[Record]) -> Figure:
    layers = [each for record in records for each in enumerate(record["layers"])]
    having = sorted({number for number, layer in layers if name in layer})
    shown = having
    if len(having) > MOST:
        shown = [having[round(i * (len(having) - 1) / (MOST - 1))] for i in range(MOST)]
    series = [_series(name, layer, records, band=len(shown) <= BANDS) for layer in shown]
    title, caption = TITLES.get(name, (name.replace("_", " "), "as the layer says"))
    caption += "; median" + (" and 5% to 95%" if len(shown) <= BANDS else "")
    return line_figure(
        f"layers-{name.replace('_', '-')}",
        title,
        caption,
        series,
        SIZE,
        narrow_size=NARROW,
        may_log=True,
    )


def _series(name: str, layer: int, records: Sequence[Record], *, band: bool) -> Series:
    rows = [_quantiles(record["layers"], layer, name) for record in records]
    low, middle, high = zip(*rows, strict=True)
    steps = [record["step"] for record in records]
    series = Series(f"layer {layer + 1}", steps, middle, smooth=False)
    return replace(series, low=low, high=high) if band else series


def _quantiles(layers: Sequence[Any], layer: int, name: str) -> list[float]:
    """NaN where they are missing, as in records of before a setting was changed."""
    found = layers[layer].get(name, {}).get("all") if layer < len(layers) else None
    return [math.nan if value is None else value for value in found or [None] * 3]
