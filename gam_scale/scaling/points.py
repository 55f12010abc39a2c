"""Runs to fit, and a check of whether they can determine a law."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from gam_scale.errors import UserError

UNNAMED = "all"
"""Name of the only family if there is no column family."""
SIZES = BUDGETS = 3  # fewest distinct N, and D, that determine an exponent
ROWS = 8  # five coefficients and something left to judge them by
ROWS_SHARED = 5  # four coefficients, where alpha = beta


@dataclass(frozen=True)
class Points:
    """n measured losses of one or more families."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray
    """Measured, or 6 N D where ``counted`` is false (arXiv 2001.08361, section 2.1)."""
    family: tuple[str, ...]
    run: np.ndarray
    """(n,) equal numbers mark rows of one training run."""
    counted: bool = False
    budget: np.ndarray | None = None
    """(n,) planned FLOPs, nan where none were planned; None: not known."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further columns of the file as text, by name; see :mod:`gam_scale.scaling.columns`."""

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def families(self) -> list[str]:
        """Names of the families, in order of appearance."""
        return list(dict.fromkeys(self.family))

    def of(self, family: str) -> "Points":
        """Return the rows of one family."""
        return self.take(np.array([name == family for name in self.family]))

    def take(self, chosen: np.ndarray) -> "Points":
        """Return the rows that a mask (n,) or indices choose."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        names = tuple(self.family[i] for i in index)
        return Points(
            self.params[index],
            self.tokens[index],
            self.loss[index],
            self.flops[index],
            names,
            self.run[index],
            self.counted,
            None if self.budget is None else self.budget[index],
            {name: tuple(cells[i] for i in index) for name, cells in self.columns.items()},
        )

    @property
    def flops_per_pair(self) -> float:
        """k in C = k N D: the runs' geometric mean, 6 where FLOPs were not given."""
        return float(np.exp(np.log(self.flops / (self.params * self.tokens)).mean()))


def from_arrays(
    params: Sequence[float] | np.ndarray,
    tokens: Sequence[float] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    flops: Sequence[float] | np.ndarray | None = None,
    family: Sequence[str] | None = None,
    run: Sequence[object] | None = None,
    budget: Sequence[float] | np.ndarray | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> Points:
    """Return points from columns, which :data:`gam_scale.scaling.runs_csv.COLUMNS` explains.

    Call :func:`check` before fitting them.
    """
    n, d, y = (np.asarray(column, float) for column in (params, tokens, loss))
    c = 6 * n * d if flops is None else np.asarray(flops, float)
    names = tuple(family) if family is not None else (UNNAMED,) * len(y)
    numbers: dict[object, int] = {}
    keys = range(len(y)) if run is None else zip(names, run, strict=True)
    runs = np.array([numbers.setdefault(key, len(numbers)) for key in keys], int)
    planned = None if budget is None else np.asarray(budget, float)
    further = {name: tuple(cells) for name, cells in (columns or {}).items()}
    return Points(n, d, y, c, names, runs, flops is not None, planned, further)


def check(points: Points, where: str = "the data", shared_exponent: bool = False) -> None:
    """Refuse runs of one family that cannot determine its law; fewer runs do for alpha = beta.

    Raises:
        UserError: the message gives the reason, and what would be accepted.
    """
    for name in ("params", "tokens", "loss", "flops"):
        values = getattr(points, name)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise UserError(f"{where}: {name} of row {i + 1} is {values[i]:g}; expected above 0")
    least, fitted = (ROWS_SHARED, "four") if shared_exponent else (ROWS, "five")
    if len(points) < least:
        raise UserError(
            f"{where} has {len(points)} rows; expected at least {least}, since {fitted} "
            "coefficients are fitted"
        )
    if len(set(points.run.tolist())) < SIZES + 1:
        raise UserError(
            f"{where} has rows of {len(set(points.run.tolist()))} runs; expected at least "
            f"{SIZES + 1}, over which uncertainty can be measured"
        )
    for name, least in (("params", SIZES), ("tokens", BUDGETS)):
        values = len(np.unique(getattr(points, name)))
        if values < least:
            raise UserError(
                f"{where} has {values} distinct value{'s' * (values > 1)} of {name}; expected at "
                f"least {least}, without which its exponent is unknown"
            )
    n, d = np.log(points.params), np.log(points.tokens)
    if abs(np.corrcoef(n, d)[0, 1]) > 0.9999:
        raise UserError(
            f"{where}: tokens follows from params in every row, so the two terms of the law cannot "
            "be told apart; expected sizes trained on more than one budget"
        )
    if np.ptp(points.loss) <= 1e-9 * points.loss.mean():
        raise UserError(f"{where}: loss is the same in every row; expected it to vary")


def named(family: str) -> str:
    """Return how an error message names a family; without a column family, ``the runs``."""
    return "the runs" if family == UNNAMED else f"family {family}"
