"""A table of all runs: their settings, their losses, and how far the law is off."""

from collections.abc import Sequence

from gam_scale.report.numbers import general, large
from gam_scale.report.table import Table
from gam_scale.scaling.analysis import Analysis
from gam_scale.scaling.columns import OTHERS, TRAINING
from gam_scale.scaling.law import Law
from gam_scale.scaling.points import Points

MAX_ROWS_SHOWN = 200
"""Most rows that a page shows; the CSV has all."""
_COUNTS = ("steps", "warmup_steps", "batch", "seq_len")


def shown_columns(points: Sequence[Points]) -> list[str]:
    """Return the further columns that a report shows and that the runs have."""
    counts = {name for p in points for name in p.columns if name.startswith("params_")}
    known = [*TRAINING, *sorted(counts), *OTHERS]
    return [
        name
        for name in known
        if all(name in p.columns for p in points) and any(any(p.columns[name]) for p in points)
    ]


def run_table(analysis: Analysis) -> Table:
    """Return a table of the runs of every family, with their settings."""
    columns = shown_columns([points for _, points in analysis.measured])
    laws = {family.name: family.fit.law for family in analysis.families}
    rows = []
    for name, p in analysis.measured:
        for i in range(len(p)):
            off = f"{_error(laws[name], p, i):+.2%}" if name in laws else "no law"
            own = [_cell(column, p.columns[column][i]) for column in columns]
            sizes = [large(float(p.params[i])), large(float(p.tokens[i]))]
            rows.append([name, *sizes, *own, f"{p.loss[i]:.3f}", off])
    header = ["family", "N", "D", *(c.replace("_", " ") for c in columns), "loss", "law off by"]
    told = {**TRAINING, **OTHERS}
    note = "; ".join(
        f"{c.replace('_', ' ')}: {told[c].split(';')[0]}" for c in columns if c in told
    )
    if len(rows) > MAX_ROWS_SHOWN:
        note = f"The first {MAX_ROWS_SHOWN} of {len(rows):,} runs; fitted.csv has all. {note}"
    return Table(f"The {len(rows):,} runs", header, rows[:MAX_ROWS_SHOWN], note)


def _error(law: Law, p: Points, i: int) -> float:
    return float(law.loss(p.params[i], p.tokens[i]) / p.loss[i] - 1)


def _cell(column: str, text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    if column in _COUNTS:
        return f"{value:,.0f}"
    return f"{value:.3f}" if column.endswith("loss") else general(value)
