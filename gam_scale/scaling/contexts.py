"""Runs on texts of several lengths at equal tokens: ``contexts.csv`` of tools/sweep.py collect."""

from dataclasses import dataclass
from pathlib import Path

from gam_scale.report.numbers import large
from gam_scale.report.table import Table
from gam_scale.scaling.runs_csv import read_number, read_table, read_text

COLUMNS = ("family", "params", "tokens", "seq_len", "loss")


@dataclass(frozen=True)
class Context:
    """One run on texts of one length."""

    family: str
    params: float
    tokens: float
    length: int
    """Tokens of each text."""
    loss: float
    late: float | None
    """Nats per token at late positions alone, if the column ``late_loss`` has it."""


def read_contexts(path: Path) -> list[Context]:
    """Read the rows of a CSV with the columns of :data:`COLUMNS`.

    Raises:
        UserError: the file is not valid; the message names the line and the cell.
    """
    contexts = []
    for _, line, row in read_table(path, COLUMNS):
        n, d, length, loss = (read_number(path, line, c, row[c]) for c in COLUMNS[1:])
        late = None
        if row.get("late_loss"):
            late = read_number(path, line, "late_loss", row["late_loss"])
        family = read_text(path, line, "family", row["family"])
        contexts.append(Context(family, n, d, round(length), loss, late))
    return contexts


def context_table(contexts: list[Context]) -> Table:
    """Return a table of losses by length of texts, a row for each family, size and tokens."""
    lengths = sorted({c.length for c in contexts})
    losses: dict[tuple[str, float, float], dict[int, list[Context]]] = {}
    for c in contexts:
        of_run = losses.setdefault((c.family, c.params, c.tokens), {})
        of_run.setdefault(c.length, []).append(c)
    rows = [
        [family, large(n), large(d), *(_cell(found.get(length, [])) for length in lengths)]
        for (family, n, d), found in losses.items()
    ]
    header = ["family", "N", "D", *(f"{length:,} tokens" for length in lengths)]
    note = (
        "Held-out nats per token of models trained on texts of so many tokens, at equal tokens in "
        "all; after the stroke those at late positions of the context; means over seeds."
    )
    return Table("Loss by the length of texts", header, rows, note)


def _cell(runs: list[Context]) -> str:
    if not runs:
        return ""
    late = [run.late for run in runs if run.late is not None]
    mean = f"{sum(run.loss for run in runs) / len(runs):.3f}"
    return f"{mean} / {sum(late) / len(late):.3f}" if len(late) == len(runs) else mean
