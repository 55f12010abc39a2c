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
"""Optional columns that a report shows, and what they hold."""


def numeric_column(points: Points, name: str, *, gaps: bool = False) -> np.ndarray | None:
    """Return a further column (n,) as numbers, nan for empty cells; None if it is not there.

    Args:
        points: the runs.
        name: name of the column.
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
    """Return the optimizer steps (n,) of each run; None if the columns do not tell."""
    if (given := numeric_column(points, "steps")) is not None:
        return given
    batch, length = numeric_column(points, "batch"), numeric_column(points, "seq_len")
    return None if batch is None or length is None else points.tokens / (batch * length)


def other_counts(points: Points) -> dict[str, np.ndarray]:
    """Return the other counts of N that differ from ``params`` in some row, by column name."""
    counts = {}
    for name in points.columns:
        if name.startswith("params_"):
            values = numeric_column(points, name)
            if values is not None and not np.array_equal(values, points.params):
                counts[name] = values
    return counts


def named_count(points: Points) -> str:
    """Return the name of the ``params_...`` column equal to ``params``, or an empty string."""
    for name in points.columns:
        if name.startswith("params_") and name not in other_counts(points):
            return name
    return ""


def with_min_steps(points: Points, least: int) -> Points:
    """Return the runs of at least ``least`` steps.

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
