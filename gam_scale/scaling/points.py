"""Runs to fit: read from CSV and checked, or made from arrays."""

import csv
import difflib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gam_scale.errors import UserError
from gam_scale.files import read_regular

REQUIRED = ("params", "tokens", "loss")
OPTIONAL = ("flops", "family", "seed", "run")
UNNAMED = "all"
"""The only family, where there is no column family."""
COLUMNS = {
    "params": "N, parameters that count as the model's size (say which: with or without embedding)",
    "tokens": "D, tokens trained on when the loss was measured",
    "loss": "nats per token on held-out text, the same text for every row",
    "flops": "C, training FLOPs until then; left out: 6 N D",
    "family": "name of the kind of model, each of which gets its own law; left out: one family",
    "seed": "tells repeated runs of one size and budget apart",
    "run": "rows of one training run (several budgets of one schedule) share it and are resampled "
    "together; left out: every row is a run of its own",
}
SIZES = BUDGETS = 3  # distinct N and D without which a curve has no exponent
ROWS = 8  # five coefficients and something left to judge them by
SMALLEST, LARGEST = 1e-6, 1e40  # what a column may hold: beyond, it is a slip or a unit


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

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def families(self) -> list[str]:
        """Names, in the order in which they appear."""
        return list(dict.fromkeys(self.family))

    def of(self, family: str) -> "Points":
        """The rows of one family."""
        return self.take(np.array([name == family for name in self.family]))

    def take(self, chosen: np.ndarray) -> "Points":
        """The rows that a mask (n,) or indices choose."""
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
) -> Points:
    """Points from columns; see :data:`COLUMNS`. Call :func:`check` before fitting them."""
    n, d, y = (np.asarray(column, float) for column in (params, tokens, loss))
    c = 6 * n * d if flops is None else np.asarray(flops, float)
    names = tuple(family) if family is not None else (UNNAMED,) * len(y)
    numbers: dict[object, int] = {}
    keys = range(len(y)) if run is None else zip(names, run, strict=True)
    runs = np.array([numbers.setdefault(key, len(numbers)) for key in keys], int)
    return Points(n, d, y, c, names, runs, flops is not None)


Row = tuple[str | Path, int, dict[str, str]]
"""A file, a line of it, and its cells by column."""


def read_csv(*paths: str | Path) -> Points:
    """Read and check CSV files with the columns of :data:`COLUMNS`; others are ignored.

    Raises:
        UserError: naming the row (as a line of the file) and the column.
    """
    read = [_rows(path) for path in paths]
    names, rows = read[0][0], [row for _, rows in read for row in rows]
    for path, (other, _) in zip(paths, read, strict=True):
        for name in OPTIONAL:
            if (name in names) != (name in other):
                raise UserError(
                    f"only one of {paths[0]} and {path} has a column {name}; expected both, or none"
                )
    numbers: dict[str, list[float]] = {
        name: [read_number(path, line, name, row.get(name)) for path, line, row in rows]
        for name in (*REQUIRED, "flops")
        if name in names
    }
    texts: dict[str, list[str]] = {
        name: [read_text(path, line, name, row.get(name)) for path, line, row in rows]
        for name in ("family", "seed", "run")
        if name in names
    }
    _check_duplicates(rows, numbers, texts)
    points = from_arrays(
        numbers["params"],
        numbers["tokens"],
        numbers["loss"],
        numbers.get("flops"),
        texts.get("family"),
        texts.get("run"),
    )
    where = " and ".join(map(str, paths))
    for family in points.families:
        check(points.of(family), f"{where}{_of(family, points)}")
    return points


def read_rows(path: str | Path) -> tuple[list[str], list[Row]]:
    """Columns of a CSV file, in lower case, and its rows.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
        names = [(name or "").strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = names
        return names, [(path, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a CSV file") from None


def _rows(path: str | Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of one file, its header checked."""
    names, rows = read_rows(path)
    _check_header(path, names)
    if not rows:
        raise UserError(f"{path} has a header and no rows; expected a row for every measured loss")
    return names, rows


def check(points: Points, where: str = "the data") -> None:
    """Refuse runs of one family that cannot say what its law is.

    Raises:
        UserError: with the reason, and what would do.
    """
    for name in ("params", "tokens", "loss", "flops"):
        values = getattr(points, name)
        bad = ~(np.isfinite(values) & (values > 0))
        if bad.any():
            i = int(np.flatnonzero(bad)[0])
            raise UserError(f"{where}: {name} of row {i + 1} is {values[i]:g}; expected above 0")
    if len(points) < ROWS:
        raise UserError(
            f"{where} has {len(points)} rows; expected at least {ROWS}, since five coefficients "
            "are fitted"
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


def _check_header(path: str | Path, names: list[str]) -> None:
    for name in REQUIRED:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (is {close[0]} meant?)" if close else ""
            raise UserError(
                f"{path}: line 1 has no column {name}{hint}; expected columns "
                f"{', '.join(REQUIRED)} and, where known, {', '.join(OPTIONAL)}"
            )
    for name in (*REQUIRED, *OPTIONAL):
        if names.count(name) > 1:
            raise UserError(f"{path}: line 1 has column {name} twice; expected it once")


def read_number(path: str | Path, line: int, name: str, text: object) -> float:
    """A cell of a CSV as a number above 0, or a UserError that says where it stands."""
    where = f"{path}: line {line}, column {name}"
    if text is None or not str(text).strip():
        raise UserError(f"{where} is empty; expected a number above 0")
    try:
        value = float(str(text))
    except ValueError:
        shown = str(text) if len(str(text)) <= 40 else str(text)[:37] + "..."
        raise UserError(f"{where} is {shown!r}; expected a number above 0") from None
    if math.isnan(value) or not SMALLEST <= value <= LARGEST:
        raise UserError(f"{where} is {value:g}; expected a finite number above 0")
    return value


def read_text(path: str | Path, line: int, name: str, text: object) -> str:
    """A cell of a CSV that is not empty, or a UserError that says where it stands."""
    if text is None or not str(text).strip():
        raise UserError(f"{path}: line {line}, column {name} is empty; expected a name or number")
    return str(text).strip()


def _check_duplicates(
    rows: list[Row], numbers: dict[str, list[float]], texts: dict[str, list[str]]
) -> None:
    """The same run twice counts twice, and makes intervals too narrow."""
    seen: dict[tuple[object, ...], str] = {}
    for i, (path, line, _) in enumerate(rows):
        key = (numbers["params"][i], numbers["tokens"][i], *(t[i] for t in texts.values()))
        if key in seen:
            wanted = "one row each" if "seed" in texts else "one row each, or a column seed"
            raise UserError(
                f"{path}: line {line} has the params, tokens"
                f"{''.join(f', {name}' for name in texts)} of {seen[key]}; expected {wanted}"
            )
        seen[key] = f"line {line}" if path == rows[0][0] else f"{path}, line {line}"


def _of(family: str, points: Points) -> str:
    return f", family {family}," if len(points.families) > 1 else ""
