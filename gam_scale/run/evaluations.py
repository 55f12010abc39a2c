"""evaluations.csv: what was measured now and then, a row a step, for spreadsheets and plots."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from gam_scale.files import write_bytes
from gam_scale.run.metrics_file import Line, read_metrics

FILE = "evaluations.csv"
MEASURED = ("val_", "task/")
"""How keys of a line begin that an evaluation or a task adds."""


def write_evaluations(run_dir: Path) -> Path | None:
    """Write it anew from metrics.jsonl, which has each step once; None: nothing was measured."""
    rows = table(read_metrics(run_dir / "metrics.jsonl"))
    if not rows:
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path = run_dir / FILE
    write_bytes(path, text.getvalue().encode())
    return path


def table(lines: Sequence[Line]) -> list[list[object]]:
    """A header and a row for each line that was measured; empty where a figure is not known."""
    keys = list(dict.fromkeys(key for line in lines for key in line if key.startswith(MEASURED)))
    measured = [line for line in lines if any(key in line for key in keys)]
    columns = ["step", "tokens", *keys]
    rows: list[list[object]] = [list(columns)] if measured else []
    for line in measured:
        rows.append(["" if line.get(key) is None else line[key] for key in columns])
    return rows
