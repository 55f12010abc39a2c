"""evaluations.csv: evaluations and tasks, one row per step, for spreadsheets and plots."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gam_scale.files import write_bytes
from gam_scale.run.metrics_file import Line, read_metrics

FILE = "evaluations.csv"
MEASURED = ("val_", "task/")
"""Prefixes of the keys that an evaluation or a task adds to a line."""


def write_evaluations(run_dir: Path) -> Path | None:
    """Write evaluations.csv anew from metrics.jsonl; return None if nothing was measured."""
    rows = table(read_metrics(run_dir / "metrics.jsonl"))
    if not rows:
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path = run_dir / FILE
    write_bytes(path, text.getvalue().encode())
    return path


def table(lines: Sequence[Line]) -> list[list[object]]:
    """Return a header and a row for each line with an evaluation; unknown figures are empty."""
    keys = list(dict.fromkeys(key for line in lines for key in line if key.startswith(MEASURED)))
    measured = [line for line in lines if any(key in line for key in keys)]
    columns = ["step", "tokens", *keys]
    rows: list[list[object]] = [list(columns)] if measured else []
    for line in measured:
        rows.append(["" if line.get(key) is None else line[key] for key in columns])
    return rows
