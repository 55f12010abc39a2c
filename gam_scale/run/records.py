"""samples.jsonl and layers.jsonl: one JSON object per line, for more than plain numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

from gam_scale.files import write_bytes
from gam_scale.run.metrics_file import keep_aside, of_a_step, rows_of

Record = dict[str, Any]

SAMPLES, LAYERS = "samples.jsonl", "layers.jsonl"
"""Files of the model's texts (``prompt`` and ``text``) and of statistics of its ``layers``."""

LayerRecord = dict[str, dict[str, list[Any]]]
"""One layer's statistics by name: ``all`` has the :data:`QUANTILES`, ``heads`` those per head."""

QUANTILES = (0.05, 0.5, 0.95)


class Records:
    """Appends records to a file, first dropping what a killed run wrote past ``resume_step``.

    Rows that are no records are moved to a file beside it, like unreadable rows of the metrics.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        records, unreadable = rows_of(path, _record)
        keep_aside(path, unreadable)
        kept = [record for record in records if record["step"] <= resume_step]
        if path.exists():
            write_bytes(path, "".join(map(_line, kept)).encode())
        self._path = path

    def write(self, record: Record) -> None:
        """Append a record of finite numbers, text, lists and the like; steps must not go back."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(record))


def read_records(path: Path) -> list[Record]:
    """Return the records of a file without damaged or cut-off rows; none if it is missing."""
    return rows_of(path, _record)[0]


def text_of(sample: Record) -> str:
    """Return a sample's prompt and text as one."""
    return f"{sample['prompt']}{sample['text']}"


def medians(layers: Sequence[LayerRecord]) -> dict[str, float]:
    """Return the median of each layer's statistics, by names that group, ``layers.horizon/03``."""
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
