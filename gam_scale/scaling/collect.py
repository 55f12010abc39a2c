"""Collect the results of a sweep's finished runs into the CSV files that a report reads."""

from collections.abc import Sequence
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Row
from gam_scale.experiment.grid import Grid
from gam_scale.files import csv_of_dicts, write_bytes
from gam_scale.grouping import grouped
from gam_scale.scaling.supplement import rate_sentence
from gam_scale.scaling.sweep_cell import SweepCell


def collect(grid: Grid[SweepCell], out: Path) -> dict[Path, int]:
    """Write the CSV files of a sweep's finished runs into ``out``.

    ``runs.csv`` has a row for every cell of the grid with a validation loss, and ``curves.csv`` the
    training losses of these cells against tokens, both from the cheapest cell to the dearest. If
    the sweep varies them, ``lr.csv`` has the loss at each learning rate and ``contexts.csv`` the
    loss at each length of texts. ``forecast.csv`` has a row for every finished run beyond the grid.

    Returns:
        The number of rows of each file written.

    Raises:
        UserError: no run has finished with a validation loss.
    """
    done = [(cell, row) for cell, row in grid.finished() if row["loss"] is not None]
    if not done:
        raise UserError(
            "the sweep has no finished run with a validation loss; expected tools/sweep.py run "
            "first, on data with a validation split"
        )
    main = [(cell, row) for cell, row in done if cell.of_the_grid]
    files = {
        "runs.csv": _rows(main),
        "forecast.csv": _rows([(cell, row) for cell, row in done if cell.beyond]),
        "curves.csv": [line for cell, row in main for line in _curve(cell, row)],
        "lr.csv": sensitivity(done),
        "contexts.csv": contexts(done),
    }
    written = {}
    for name, rows in files.items():
        if rows:
            write_bytes(out / name, csv_of_dicts(rows))
            written[out / name] = len(rows)
    return written


def sensitivity(done: Sequence[tuple[SweepCell, Row]]) -> list[Row]:
    """Return the runs at other learning rates with their counterparts, by family, size and rate."""
    done = [(cell, row) for cell, row in done if row["loss"] is not None and not cell.other_context]
    varied = {_but_rate(cell) for cell, _ in done if cell.lr_multiplier != 1}
    names = ("family", "params", "tokens", "width", "seed", "lr_multiplier", "lr", "loss")
    picked = [{n: row[n] for n in names} for cell, row in done if _but_rate(cell) in varied]
    order = list(dict.fromkeys(row["family"] for row in picked))
    picked.sort(key=lambda row: (order.index(row["family"]), row["width"], row["lr_multiplier"]))
    return picked


def best_multipliers(done: Sequence[tuple[SweepCell, Row]]) -> list[str]:
    """Return a sentence on the best rate of each family and size whose rates were varied."""
    sizes = grouped(sensitivity(done), lambda row: (row["family"], row["params"]))
    columns = ("lr_multiplier", "loss")
    sentences = [
        rate_sentence(*size, *([row[key] for row in rows] for key in columns))
        for size, rows in sizes.items()
    ]
    return [sentence for sentence in sentences if sentence]


def contexts(done: Sequence[tuple[SweepCell, Row]]) -> list[Row]:
    """Return the runs on texts of other lengths with their counterparts, by family and length."""

    def size(cell: SweepCell) -> tuple[str, int, float, int]:
        return cell.family, cell.width, cell.tokens, cell.seed

    varied = {size(cell) for cell, _ in done if cell.other_context}
    names = ("family", "params", "tokens", "width", "seed", "seq_len", "loss", "late_loss")
    picked = [
        {name: row[name] for name in names}
        for cell, row in done
        if size(cell) in varied and cell.lr_multiplier == 1
    ]
    order = list(dict.fromkeys(row["family"] for row in picked))
    return sorted(picked, key=lambda row: (order.index(row["family"]), row["seq_len"]))


def _rows(done: Sequence[tuple[SweepCell, Row]]) -> list[Row]:
    """Return the rows with the columns that are known of any of them."""
    rows = [row | cell.record() for cell, row in done]
    known = {key for row in rows for key, value in row.items() if value is not None}
    known -= {"lr_multiplier"}
    return [
        {key: value for key, value in row.items() if key in known} | _counts(cell)
        for (cell, _), row in zip(done, rows, strict=True)
    ]


def _counts(cell: SweepCell) -> Row:
    """Return other counts of a cell's parameters; each gets a law of its own in a report.

    Embedding weights that the head shares are counted once; learned positions never count.
    """
    model = cell.model
    total = model.n_parameters()
    if model.position is not None:
        total -= model.position.weight.numel()
    embedding = model.embedding.weight.numel()
    if model.head is not None:
        embedding += model.head_weight.numel()
    return {"params_with_embedding": total, "params_without_embedding": total - embedding}


def _but_rate(cell: SweepCell) -> tuple[object, ...]:
    return cell.family, cell.width, cell.tokens, cell.seed


def _curve(cell: SweepCell, row: Row) -> list[Row]:
    named = {name: row[name] for name in ("family", "params")} | {"run": cell.name}
    return [named | {"tokens": tokens, "loss": loss} for tokens, loss in cell.curve()]
