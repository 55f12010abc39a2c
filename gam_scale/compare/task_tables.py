"""Tables and figures of what a task comparison found."""

from collections.abc import Sequence
from typing import Any

from gam_scale.compare.rates import merit
from gam_scale.experiment.cell import Row
from gam_scale.experiment.spread import Spread
from gam_scale.grouping import grouped
from gam_scale.report.axes import finish
from gam_scale.report.figure import Figure
from gam_scale.report.lines import SMALL, Series, line_figure
from gam_scale.report.looks import Palette
from gam_scale.report.numbers import large
from gam_scale.report.page import Beside, Part
from gam_scale.report.table import Table


def parts(rows: Sequence[Row]) -> list[Part]:
    """Return all tables and figures, task by task."""
    made: list[Part] = []
    for task, members in grouped(rows, lambda row: row["task"]).items():
        best = best_rows(members)
        made += [
            accuracies(task, best),
            Beside([by_state(task, best), by_size(task, best)]),
            rates(task, members),
        ]
    return made


Group = tuple[str, int]
"""Model and width."""


def best_rows(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Return the rows of the best learning rate, one per seed, by model and width.

    The best rate is chosen on texts of its own; of equally good rates the lower one is taken.
    """
    groups = grouped(rows, lambda row: (row["model"], row["width"]))
    return {group: _at_best_rate(members) for group, members in groups.items()}


def _at_best_rate(rows: Sequence[Row]) -> list[Row]:
    at_rates = grouped(rows, lambda row: row["lr"])
    most = max(map(len, at_rates.values()))
    best = max((at_rate for at_rate in at_rates.values() if len(at_rate) == most), key=merit)
    return sorted(best, key=lambda r: r["seed"])


def accuracies(task: str, best: dict[Group, list[Row]]) -> Table:
    """Tabulate accuracy: a row per model and width, a column per difficulty."""
    first = next(iter(best.values()))[0]
    labels = [score["label"] for score in first["scores"]]
    table = []
    for (model, width), rows in best.items():
        some = rows[0]
        cells = [
            Spread.of(r["scores"][i]["accuracy"] for r in rows).text("{:.3f}".format)
            for i in range(len(labels))
        ]
        sizes = [str(width), f"{some['parameters']:,}", f"{some['memory']:,}", f"{some['state']:,}"]
        table.append([model, *sizes, f"{some['lr']:g}", str(len(rows)), *cells])
    guess = [f"{score['chance']:.3f}" for score in first["scores"]]
    table.append(["a guess", "", "", "", "", "", "", *guess])
    header = ["model", "width", "parameters", "memory", "state", "lr", "seeds", *labels]
    unit = " in ".join(reversed(first["columns"]))
    note = (
        f"Accuracy on held-out texts of so many {unit}, at the best of the learning rates, which "
        f"was chosen on texts of its own; ± over seeds. Trained on {first['trained']}. Memory: "
        "numbers that written memories hold; state: all that is held of the longest text."
    )
    return Table(f"Task: {task}", header, table, note)


def rates(task: str, rows: Sequence[Row]) -> Table:
    """Tabulate the accuracy at each learning rate, for the first seed."""
    first = min(row["seed"] for row in rows)
    lrs = sorted({row["lr"] for row in rows})
    by_rate = {(r["model"], r["width"], r["lr"]): r for r in rows if r["seed"] == first}
    table = [
        [model, str(width)]
        + [f"{r['checked']:.3f}" if (r := by_rate.get((model, width, lr))) else "" for lr in lrs]
        for model, width in dict.fromkeys((r["model"], r["width"]) for r in rows)
    ]
    note = "Accuracy on the hardest texts trained on at the end of training, by learning rate."
    return Table(
        f"Task: {task}, learning rates", ["model", "width", *map("{:g}".format, lrs)], table, note
    )


def by_state(task: str, best: dict[Group, list[Row]]) -> Figure:
    """Plot accuracy on the last difficulty against the numbers that a model holds."""
    models = list(dict.fromkeys(model for model, _ in best))
    hardest = next(iter(best.values()))[0]["scores"][-1]["label"]

    def draw(axes: Any, palette: Palette, narrow: bool) -> None:
        for i, model in enumerate(models):
            points = sorted(
                (rows[0]["state"], Spread.of(r["scores"][-1]["accuracy"] for r in rows).mean)
                for (name, _), rows in best.items()
                if name == model
            )
            x, y = zip(*points, strict=True)
            style = {"lw": 1.5, "color": palette.line(i), "marker": palette.marker(i)}
            axes.plot(x, y, ms=6, mew=0, **style)
        finish(axes, palette, narrow, "numbers held", "accuracy", large)
        axes.set_ylim(-0.02, 1.02)

    caption = f"accuracy at {hardest} against all numbers that a model holds of the longest text"
    name, title, keys = f"{task}-state", f"{task}: accuracy by state", tuple(enumerate(models))
    return Figure(name, title, caption, draw, keys, SMALL, None, marked=True)


def by_size(task: str, best: dict[Group, list[Row]]) -> Figure:
    """Plot accuracy against the size of the texts, for each model at its largest width."""
    widest: dict[str, tuple[int, list[Row]]] = {}
    for (model, width), rows in best.items():
        if width >= widest.get(model, (0, []))[0]:
            widest[model] = (width, rows)
    lines = []
    for i, (model, (_, rows)) in enumerate(widest.items()):
        longest = {s["size"]: k for k, s in enumerate(rows[0]["scores"])}  # last of a size
        x = sorted(longest)
        y = [Spread.of(r["scores"][longest[n]]["accuracy"] for r in rows).mean for n in x]
        lines.append(Series(model, x, y, colour=i))
    unit = next(iter(best.values()))[0]["columns"][-1]
    return line_figure(
        f"{task}-size",
        f"{task}: accuracy by {unit}",
        f"accuracy on the longest texts of so many {unit}",
        lines,
        SMALL,
        y_range=(-0.02, 1.02),
        log_x=True,
    )
