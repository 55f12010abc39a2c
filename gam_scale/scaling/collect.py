"""What finished runs of a sweep left, as the CSV files that a report is made of."""

from collections.abc import Sequence
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.experiment.cell import Row
from gam_scale.experiment.grid import Grid
from gam_scale.files import csv_of_dicts, write_bytes
from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import read_starts
from gam_scale.run.metrics_file import read_metrics
from gam_scale.scaling.supplement import rate_sentence
from gam_scale.scaling.sweep_cell import SweepCell

CURVE_POINTS = 60
"""Most rows of curves.csv for one run: what a figure can show."""


def collect(grid: Grid[SweepCell], out: Path) -> dict[Path, int]:
    """Write the CSV files of a sweep's finished runs into ``out``.

    ``runs.csv`` has a row for every cell with a validation loss, ``curves.csv`` its training loss
    against tokens, and ``lr.csv``, where ``lr_multipliers`` asks for them, the loss at each
    learning rate. Rows go from the cheapest cell to the dearest.

    Returns:
        Rows of each file written.

    Raises:
        UserError: no run has finished with a validation loss.
    """
    done = [(cell, row) for cell, row in grid.finished() if row["loss"] is not None]
    if not done:
        raise UserError(
            f"{out} has no finished run of this sweep with a validation loss; expected "
            "tools/sweep.py run first, on data with a validation split"
        )
    main = [(cell, row) for cell, row in done if cell.lr_multiplier == 1]
    rates = sensitivity(done)
    files = {
        "runs.csv": [
            {key: value for key, value in row.items() if key != "lr_multiplier"} for _, row in main
        ],
        "curves.csv": [line for cell, row in main for line in _curve(cell, row)],
        "lr.csv": rates,
    }
    written = {}
    for name, rows in files.items():
        if rows:
            write_bytes(out / name, csv_of_dicts(rows))
            written[out / name] = len(rows)
    return written


def sensitivity(done: Sequence[tuple[SweepCell, Row]]) -> list[Row]:
    """Finished runs of other learning rates, and those they compare with, by family and rate."""
    done = [(cell, row) for cell, row in done if row["loss"] is not None]
    varied = {_but_rate(cell) for cell, _ in done if cell.lr_multiplier != 1}
    names = ("family", "params", "tokens", "width", "seed", "lr_multiplier", "lr", "loss")
    picked = [{n: row[n] for n in names} for cell, row in done if _but_rate(cell) in varied]
    order = list(dict.fromkeys(row["family"] for row in picked))
    return sorted(picked, key=lambda row: (order.index(row["family"]), row["lr_multiplier"]))


def best_multipliers(done: Sequence[tuple[SweepCell, Row]]) -> list[str]:
    """For each family, in a sentence, which learning rate was best at its smallest size."""
    rows, sentences = sensitivity(done), []
    for family in dict.fromkeys(row["family"] for row in rows):
        of_it = [row for row in rows if row["family"] == family]
        multipliers, losses = ([row[key] for row in of_it] for key in ("lr_multiplier", "loss"))
        sentences.append(rate_sentence(family, multipliers, losses))
    return [sentence for sentence in sentences if sentence]


def _but_rate(cell: SweepCell) -> tuple[object, ...]:
    return cell.family, cell.width, cell.tokens, cell.seed


def _curve(cell: SweepCell, row: Row) -> list[Row]:
    """A branch's curve begins where it left its trunk, whose lines its metrics begin with."""
    per_step = cell.tokens / cell.config.train.steps
    run = RunDir(cell.config.log.run_dir)
    began = next((start.step for start in read_starts(run.starts)), 0)
    lines = [line for line in read_metrics(run.metrics) if line["step"] >= began]
    lines = [line for line in lines if line.get("loss") is not None]
    stride = -(-len(lines) // CURVE_POINTS)
    kept = [line for i, line in enumerate(lines) if (len(lines) - 1 - i) % max(1, stride) == 0]
    named = {name: row[name] for name in ("family", "params")} | {"run": cell.name}
    return [
        named | {"tokens": round(line["step"] * per_step), "loss": round(line["loss"], 5)}
        for line in kept
    ]
