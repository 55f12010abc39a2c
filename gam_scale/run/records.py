"""samples.jsonl and layers.jsonl: a JSON object a line, of what numbers alone do not hold."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from gam_scale.files import write_bytes
from gam_scale.run.metrics_file import keep_aside, of_a_step, rows_of

Record = dict[str, Any]

SAMPLES, LAYERS = "samples.jsonl", "layers.jsonl"
"""Texts that the model wrote, ``prompt`` and ``text``; statistics of its ``layers``."""

LayerRecord = dict[str, dict[str, list[Any]]]
"""Of one layer, by name: ``all``, the :data:`QUANTILES`, and ``heads``, those of each head."""

QUANTILES = (0.05, 0.5, 0.95)


class Records:
    """Appends records; what a killed run wrote past the step that it resumes from is dropped.

    Rows that are none are kept aside, as those of the metrics.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        records, unreadable = rows_of(path, _record)
        keep_aside(path, unreadable)
        kept = [record for record in records if record["step"] <= resume_step]
        if path.exists():
            write_bytes(path, "".join(map(_line, kept)).encode())
        self._path = path

    def write(self, record: Record) -> None:
        """Add one, of finite numbers, text, lists and the like; its ``step`` is past the last."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(record))


def read_records(path: Path) -> list[Record]:
    """Those of a file, none where it is missing, without what a kill cut short or is damaged."""
    return rows_of(path, _record)[0]


def text_of(sample: Record) -> str:
    """A sample with its prompt."""
    return f"{sample['prompt']}{sample['text']}"


def medians(layers: Sequence[LayerRecord]) -> dict[str, float]:
    """Of each layer's statistics, by names that group them: ``layers.horizon/03``."""
    return {
        f"layers.{name}/{i:02d}": values["all"][1]
        for i, layer in enumerate(layers)
        for name, values in layer.items()
        if values["all"][1] is not None
    }


def _record(row: bytes) -> Record | None:
    record = of_a_step(row)
    if record is None:
        return None
    layers, texts = record.get("layers"), [record.get("prompt"), record.get("text")]
    whole = _are_layers(layers) if "layers" in record else all(type(t) is str for t in texts)
    return record if whole else None


def _are_layers(layers: Any) -> bool:
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return False
    statistics = [values for layer in layers for values in layer.values()]
    return all(
        isinstance(values, dict)
        and isinstance(values.get("all"), list)
        and len(values["all"]) == len(QUANTILES)
        and all(type(number) in (int, float, NoneType) for number in values["all"])
        for values in statistics
    )


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"
