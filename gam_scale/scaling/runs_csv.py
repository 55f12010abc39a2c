"""Read runs to fit from CSV files, and check them row by row."""

import csv
import difflib
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.files import read_regular
from gam_scale.scaling.points import Points, check, from_arrays

REQUIRED = ("params", "tokens", "loss")
OPTIONAL = ("flops", "flops_budget", "family", "seed", "run")
COLUMNS = {
    "params": "N, parameters that count as the model's size (say which: with or without embedding)",
    "tokens": "D, tokens trained on when the loss was measured",
    "loss": "nats per token on held-out text, the same text for every row",
    "flops": "C, training FLOPs until then; left out: 6 N D",
    "flops_budget": "FLOPs that the run was planned to spend, one number for all runs of a budget, "
    "for isoFLOP minima; empty: on none; left out, or empty in every row: found from flops",
    "family": "name of the kind of model, each of which gets its own law; left out: one family",
    "seed": "tells repeated runs of one size and budget apart",
    "run": "rows of one training run (several budgets of one schedule) share it and are resampled "
    "together; left out: every row is a run of its own",
}
SMALLEST, LARGEST = 1e-6, 1e40  # range of a number; beyond, it is a slip or in another unit
MOST_OFF = 2.0  # largest factor, either way, between a run's planned and spent FLOPs
FLOPS_PER_PAIR = 1.0, 100.0
"""FLOPs / (N D): 6 for a dense model, more where its context is long."""
UNITS: dict[str, Callable[[float], float]] = {
    "nats": lambda loss: loss,
    "bits": lambda loss: loss * math.log(2),
    "perplexity": math.log,
}
"""By unit, the function from a value of the loss column to nats per token."""
OTHER_LOSSES = ("late_loss",)
"""Further columns in the unit of the loss column."""
MOST_NATS = 13.0  # the loss of a guess among 440,000 tokens; no run has more
DELIMITERS = ",;\t"

Row = tuple[str | Path, int, dict[str, str]]
"""File, number of the line, and cells by column."""


def read_csv(*paths: str | Path, unit: str | None = None, shared_exponent: bool = False) -> Points:
    """Read and check CSV files with the columns of :data:`COLUMNS`; others are kept as text.

    Families too small for a law are kept as long as another family has enough runs.

    Args:
        paths: paths of the files.
        unit: unit of the losses, one of :data:`UNITS`; None: nats, if all values can be nats.
        shared_exponent: whether alpha = beta, for which fewer runs will do.

    Raises:
        UserError: the message names the row (as a line of the file) and the column.
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
    _check_spelling(rows, texts.get("family", []))
    _check_flops(rows, numbers)
    numbers["loss"] = in_nats(rows, numbers["loss"], unit)
    further = [
        name
        for name in names
        if name and name not in numbers and all(name in other for other, _ in read)
    ]
    _check_further(rows, further)
    points = from_arrays(
        numbers["params"],
        numbers["tokens"],
        numbers["loss"],
        numbers.get("flops"),
        texts.get("family"),
        texts.get("run"),
        _read_budgets(rows, numbers.get("flops")),
        {name: [_further(row, name, unit) for _, _, row in rows] for name in further},
    )
    where = " and ".join(map(str, dict.fromkeys(paths)))
    refused = []
    for family in points.families:
        try:
            check(points.of(family), f"{where}{_of(family, points)}", shared_exponent)
        except UserError as error:
            refused.append(error)
    if len(refused) == len(points.families):
        raise refused[0]
    return points


def _further(row: dict[str, str], name: str, unit: str | None) -> str:
    """Return a cell as text; a number in one of :data:`OTHER_LOSSES` is converted to nats."""
    cell = (row.get(name) or "").strip()
    if unit is None or name not in OTHER_LOSSES:
        return cell
    try:
        return str(UNITS[unit](float(cell)))
    except ValueError:
        return cell


def read_rows(path: str | Path) -> tuple[list[str], list[Row]]:
    """Return the columns of a CSV file, in lower case, and its rows.

    The delimiter is the comma, semicolon or tab that the header has most of.

    Raises:
        UserError: the file is unreadable, or a row has more cells than the header has columns.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
        header = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=header.count)
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True
        )
        names = [(name or "").strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = names
        rows: list[Row] = [(path, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a CSV file") from None
    for _, line, row in rows:
        if None in row:
            cells = len(names) + len(row[None])  # type: ignore[index]
            raise UserError(
                f"{path}: line {line} has {cells} cells and the header {len(names)}; expected as "
                "many (decimals are written with a point, text with commas between quotes)"
            )
    return names, rows


def read_table(path: str | Path, wanted: Iterable[str], expected: str = "") -> list[Row]:
    """Return the rows of a CSV file that has at least the columns ``wanted``.

    Args:
        path: path of the file.
        wanted: the required columns.
        expected: for the message, what would be accepted; empty: the required columns.

    Raises:
        UserError: the file is unreadable, or lacks a column.
    """
    names, rows = read_rows(path)
    for name in wanted:
        if name not in names:
            expected = expected or ", ".join(wanted)
            raise UserError(f"{path}: line 1 has no column {name}; expected {expected}")
    return rows


def _rows(path: str | Path) -> tuple[list[str], list[Row]]:
    """Return columns and rows of one file, after checking its header."""
    names, rows = read_rows(path)
    _check_header(path, names)
    if not rows:
        raise UserError(f"{path} has a header and no rows; expected a row for every measured loss")
    return names, rows


def _check_header(path: str | Path, names: list[str]) -> None:
    for name in REQUIRED:
        if name not in names:
            hint = _hint(name, names)
            raise UserError(
                f"{path}: line 1 has no column {name}{hint}; expected columns "
                f"{', '.join(REQUIRED)} and, where known, {', '.join(OPTIONAL)}"
            )
    for name in (*REQUIRED, *OPTIONAL):
        if names.count(name) > 1:
            raise UserError(f"{path}: line 1 has column {name} twice; expected it once")


def _hint(name: str, names: list[str]) -> str:
    """Return a hint at the column that may be meant by the missing one, or an empty string."""
    units = {"perplexity": "perplexity", "ppl": "perplexity", "bits": "bits", "bpt": "bits"}
    units["bits_per_token"] = "bits"
    for other in names if name == "loss" else []:
        if other in units:
            return f" (is {other} meant? Name it loss and say --loss-unit {units[other]})"
    close = difflib.get_close_matches(name, names, n=1)
    return f" (is {close[0]} meant?)" if close else ""


def read_number(path: str | Path, line: int, name: str, text: object) -> float:
    """Return a CSV cell as a number above 0, or raise a UserError that says where the cell is."""
    where = f"{path}: line {line}, column {name}"
    if text is None or not str(text).strip():
        raise UserError(f"{where} is empty; expected a number above 0")
    try:
        value = float(str(text))
    except ValueError:
        shown = str(text) if len(str(text)) <= 40 else str(text)[:37] + "..."
        comma = ", with a decimal point" if "," in shown else ""
        raise UserError(f"{where} is {shown!r}; expected a number above 0{comma}") from None
    if math.isnan(value) or not SMALLEST <= value <= LARGEST:
        raise UserError(f"{where} is {value:g}; expected a finite number above 0")
    return value


def _read_budgets(rows: list[Row], flops: list[float] | None) -> list[float] | None:
    """Return the column flops_budget, nan for empty cells; None if it is missing or all empty."""
    name = "flops_budget"
    cells = [row.get(name) for _, _, row in rows]
    if not any(cell and cell.strip() for cell in cells):
        return None
    planned = [
        read_number(path, line, name, cell) if cell and cell.strip() else math.nan
        for (path, line, _), cell in zip(rows, cells, strict=True)
    ]
    for (path, line, _), budget, spent in zip(rows, planned, flops or [], strict=False):
        if spent > MOST_OFF * budget or budget > MOST_OFF * spent:
            raise UserError(
                f"{path}: line {line}, column {name} is {budget:g} where flops is {spent:g}; "
                f"expected FLOPs as well, within a factor of {MOST_OFF:g}"
            )
    return planned


def _check_further(rows: list[Row], names: list[str]) -> None:
    """Refuse text in further columns that a report computes with, before anything is fitted."""
    wanted = [name for name in names if name == "steps" or name.startswith("params_")]
    if "steps" not in names and {"batch", "seq_len"} <= set(names):
        wanted += ["batch", "seq_len"]
    for path, line, row in rows:
        for name in (*wanted, *(name for name in OTHER_LOSSES if (row.get(name) or "").strip())):
            read_number(path, line, name, row.get(name))


def read_text(path: str | Path, line: int, name: str, text: object) -> str:
    """Return a CSV cell that is not empty, or raise a UserError that says where the cell is."""
    if text is None or not str(text).strip():
        raise UserError(f"{path}: line {line}, column {name} is empty; expected a name or number")
    return str(text).strip()


def _check_duplicates(
    rows: list[Row], numbers: dict[str, list[float]], texts: dict[str, list[str]]
) -> None:
    """Refuse duplicate runs, which would count twice and make intervals too narrow."""
    seen: dict[tuple[object, ...], tuple[str | Path, int]] = {}
    for i, (path, line, _) in enumerate(rows):
        key = (numbers["params"][i], numbers["tokens"][i], *(t[i] for t in texts.values()))
        if key in seen:
            earlier, at = seen[key]
            there = f"line {at}" if earlier == path else f"{earlier}, line {at}"
            wanted = "one row each" if "seed" in texts else "one row each, or a column seed"
            raise UserError(
                f"{path}: line {line} has the params, tokens"
                f"{''.join(f', {name}' for name in texts)} of {there}; expected {wanted}"
            )
        seen[key] = path, line


def _check_spelling(rows: list[Row], families: list[str]) -> None:
    """Refuse two spellings of one name, which would be two families with a law each."""
    spelt: dict[str, str] = {}
    for (path, line, _), name in zip(rows, families, strict=False):
        other = spelt.setdefault(" ".join(name.lower().split()), name)
        if other != name:
            raise UserError(
                f"{path}: line {line}, column family is {name!r}, and {other!r} before; expected "
                "names that differ by more than case and spaces"
            )


def _check_flops(rows: list[Row], numbers: dict[str, list[float]]) -> None:
    low, high = FLOPS_PER_PAIR
    columns = (numbers["params"], numbers["tokens"], numbers.get("flops", []))
    for (path, line, _), n, d, flops in zip(rows, *columns, strict=False):
        if not low <= flops / (n * d) <= high:
            raise UserError(
                f"{path}: line {line}, flops / (params tokens) is {flops / (n * d):.3g}; expected "
                f"{low:g} to {high:g} (about 6): FLOPs of the whole run, in units of one"
            )


def in_nats(rows: list[Row], loss: list[float], unit: str | None) -> list[float]:
    """Return the losses of rows in nats per token; for ``unit`` see :func:`read_csv`.

    Raises:
        UserError: a value is no loss in this unit, the unit is unknown, or it must be given.
    """
    if unit is not None and unit not in UNITS:
        raise UserError(f"--loss-unit is {unit}; expected one of {', '.join(UNITS)}")
    nats = []
    for (path, line, _), value in zip(rows, loss, strict=True):
        where = f"{path}: line {line}, column loss is {value:g}"
        if unit is None and value > MOST_NATS:
            raise UserError(
                f"{where}, more nats per token than a guess costs; expected --loss-unit bits (per "
                "token), perplexity or, where they are that, nats"
            )
        if unit == "perplexity" and value <= 1:
            raise UserError(f"{where}; expected a perplexity, which is above 1")
        nats.append(UNITS[unit or "nats"](value))
    return nats


def _of(family: str, points: Points) -> str:
    return f", family {family}," if len(points.families) > 1 else ""
