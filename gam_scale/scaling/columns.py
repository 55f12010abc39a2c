"""Further columns of runs: how each was trained, other counts of its parameters, other losses."""

import numpy as np

from gam_scale.errors import UserError, one_line
from gam_scale.scaling.points import Points

TRAINING = {
    "lr": "peak learning rate",
    "batch": "sequences a step",
    "seq_len": "tokens of a sequence",
    "steps": "optimizer steps; left out: tokens / (batch seq_len), where those are there",
    "warmup_steps": "steps that the learning rate rose",
}
OTHERS = {
    "params_...": "N counted otherwise, such as params_with_embedding: gets a law of its own, too",
    "late_loss": "nats per token at late positions of the context, shown beside the mean",
}
FURTHER = TRAINING | OTHERS
"""Columns that a report shows where they are there, and what they hold."""


def numbers(points: Points, name: str, *, gaps: bool = False) -> np.ndarray | None:
    """(n,) a further column, nan where a cell is empty; None where it is not there.

    Args:
        points: the runs.
        name: of the column.
        gaps: whether cells may be empty.

    Raises:
        UserError: a cell is not a number above 0.
    """
    if name not in points.columns:
        return None
    cells = points.columns[name]
    for cell in cells:
        if not _is_positive(cell) and not (gaps and not cell):
            rows = "where it is known" if gaps else "in every row"
            raise UserError(
                f"column {name} has {one_line(cell)!r}; expected a number above 0 {rows}"
            )
    return np.array([float(cell or "nan") for cell in cells])


def steps(points: Points) -> np.ndarray | None:
    """(n,) optimizer steps of each run; None where the columns do not tell."""
    if (given := numbers(points, "steps")) is not None:
        return given
    batch, length = numbers(points, "batch"), numbers(points, "seq_len")
    return None if batch is None or length is None else points.tokens / (batch * length)


def other_counts(points: Points) -> dict[str, np.ndarray]:
    """Other counts of N by the column's name, of those that differ from ``params`` in some row."""
    counts = {}
    for name in points.columns:
        if name.startswith("params_"):
            values = numbers(points, name)
            if values is not None and not np.array_equal(values, points.params):
                counts[name] = values
    return counts


def named_count(points: Points) -> str:
    """The further column that ``params`` repeats, which says what N counts; empty for none."""
    for name in points.columns:
        if name.startswith("params_") and name not in other_counts(points):
            return name
    return ""


def with_steps(points: Points, least: int) -> Points:
    """The runs of at least so many steps.

    Raises:
        UserError: the columns do not tell steps, or no run has as many.
    """
    if least <= 0:
        return points
    taken = steps(points)
    if taken is None:
        raise UserError(
            "--min-steps needs a column steps, or batch and seq_len; expected one in the CSV"
        )
    if not (taken >= least).any():
        raise UserError(
            f"--min-steps is {least}; expected at most {taken.max():.0f}, which the longest run has"
        )
    return points.take(taken >= least)


def _is_positive(cell: str) -> bool:
    try:
        return 0 < float(cell) < float("inf")
    except ValueError:
        return False
