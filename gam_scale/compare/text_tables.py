"""Tables and figures of what a text comparison found."""

import math
from collections.abc import Sequence
from typing import Any

from gam_scale.compare.spec import TextSpec
from gam_scale.compare.text_cell import final_loss, or_inf
from gam_scale.evaluate.effective_context import TOLERANCE
from gam_scale.evaluate.hidden import chance_length
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.report import banded
from gam_scale.experiment.cell import Row
from gam_scale.experiment.spread import Spread
from gam_scale.grouping import grouped
from gam_scale.report.lines import SMALL, WIDE, Series, line_figure
from gam_scale.report.numbers import large, or_over, plus_minus, ranged, span
from gam_scale.report.page import Beside, Part
from gam_scale.report.table import Table

EARLY = 0.15
"""Share of a training, at its start, that the picture of its loss leaves out."""
MODEL_COLUMNS = ["model", "parameters", "memory", "state", "lr", "tokens", "seeds", "loss"]


def parts(rows: Sequence[Row], spec: TextSpec) -> list[Part]:
    """Return the tables and figures of all that was trained and measured."""
    reference, at_rates = spec.reference, _full_rates(rows)
    rows = _at_best(rows, at_rates)
    full, made = by_model(rows, stage="full"), list[Part]()
    if full:
        equal = equal_loss(full, spec)
        made += [losses(full, reference), *([equal] if equal else []), learning(full)]
    if tuned := by_model(rows, stage="tune"):
        made.append(rates(tuned, "Learning rates"))
    if at_rates:
        made.append(rates(at_rates, "Learning rates of full runs"))
    measured = [row for row in rows if "what" in row]
    for length in sorted({r["length"] for r in measured if r["what"] == "positions"}):
        of_length = by_model(measured, what="positions", length=length)
        made += [positions(of_length, length), positions_figures(of_length, length, reference)]
    hidden = [r for r in measured if r["what"] in ("needle", "pairs")]
    if hidden:
        made += [retrieval(hidden), retrieval_figures(hidden)]
    if cleared := [r for r in measured if r["what"] == "context"]:
        made.append(contexts(cleared))
    return made


def by_model(rows: Sequence[Row], **wanted: Any) -> dict[str, list[Row]]:
    """Return the rows with the ``wanted`` values, by model."""
    alike = (row for row in rows if all(row.get(key) == wanted[key] for key in wanted))
    return grouped(alike, lambda row: row["model"])


def _full_rates(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return, by model, the first seed's full runs of models that have them at several rates."""
    full = by_model(rows, stage="full")
    firsts = {
        model: [row for row in of_model if row["seed"] == min(r["seed"] for r in of_model)]
        for model, of_model in full.items()
    }
    return {model: first for model, first in firsts.items() if len(first) > 1}


def _at_best(rows: Sequence[Row], at_rates: dict[str, list[Row]]) -> list[Row]:
    """Drop full runs at other rates than a model's best, and the measurements of these runs.

    The best is the first seed's. A further seed may stand at a rate that was the best before.
    """
    left_out = set()
    for model, first in at_rates.items():
        best = min(first, key=final_loss)
        full = by_model(rows, stage="full", model=model)[model]
        left_out |= {row["cell"] for row in full if row["lr"] != best["lr"]}
    return [row for row in rows if _run_of(row) not in left_out]


def _run_of(row: Row) -> str:
    """Return the name of the run that a row belongs to or measures."""
    if "what" not in row:
        return row["cell"]
    return row["cell"].removesuffix(f"-{row['what']}-{row['length']}")


def _ordered(full: dict[str, list[Row]], reference: str) -> tuple[dict[str, Spread], str]:
    """Return losses by model, the best first, and the model that others are compared with."""
    spreads = _spreads(full)
    return spreads, reference if reference in full else next(iter(spreads))


def _spreads(full: dict[str, list[Row]]) -> dict[str, Spread]:
    spreads = {m: Spread.of(r["val_loss"] for r in rows) for m, rows in full.items()}
    return dict(sorted(spreads.items(), key=lambda each: each[1].mean))


def losses(full: dict[str, list[Row]], reference: str) -> Table:
    """Tabulate size, training, loss and speed: a row per model, the best first."""
    spreads, base = _ordered(full, reference)
    table = []
    for model in spreads:
        rows, some = full[model], full[model][0]
        difference = spreads[model].difference(spreads[base])
        sizes = [f"{some['parameters']:,}", f"{some['memory']:,}", f"{some['state']:,}"]
        trained = [f"{some['lr']:g}", large(max(r["tokens"] for r in rows)), str(len(rows))]
        speed = Spread.of(r["tokens_per_s"] for r in rows).text("{:,.0f}".format)
        bits = Spread.of(r["val_bits_per_byte"] for r in rows).text("{:.4f}".format)
        less = plus_minus(*difference, "{:+.4f}".format) if difference and model != base else ""
        table.append(
            [model, *sizes, *trained, spreads[model].text("{:.4f}".format), less, bits, speed]
        )
    header = [*MODEL_COLUMNS, f"less {base}", "bits/byte", "tokens/s"]
    return Table("Models", header, table, _note(full))


def _note(full: dict[str, list[Row]]) -> str:
    counts = [rows[0]["parameters"] for rows in full.values()]
    return (
        "Validation loss in nats per token at the end of full runs, each at its best learning "
        "rate; ± is the standard deviation over seeds, of a difference its standard error. "
        "Parameters beside embeddings and head, within "
        f"{max(counts) / min(counts) - 1:.1%} of each other; memory: numbers that written memories "
        "hold; state: all that is held of a text of the training's length."
    )


def equal_loss(full: dict[str, list[Row]], spec: TextSpec) -> Table | None:
    """Tabulate what each model needed to reach the last loss of the one it is set against."""
    spreads = _spreads(full)
    table = []
    for model in spreads:
        other = spec.entry(model).against or spec.reference
        if model == other or other not in full or spreads[other].diverged:
            continue
        goal, rows = spreads[other].mean, full[model]
        tokens = [n for row in rows if (n := _reaches(row, goal)) is not None]
        cells = ["not reached"] * 4
        if len(tokens) == len(rows):
            took = [n / row["tokens_per_s"] for n, row in zip(tokens, rows, strict=True)]
            whole = [row["tokens"] / row["tokens_per_s"] for row in full[other]]
            used, spent, most = Spread.of(tokens), Spread.of(took), Spread.of(whole)
            share = used.mean / full[other][0]["tokens"], spent.mean / most.mean
            cells = [used.text(large), f"{share[0]:.2f}"]
            cells += [spent.text("{:,.0f}".format), f"{share[1]:.2f}"]
        table.append([model, other, f"{goal:.4f}", *cells])
    note = (
        "What a model needed for the loss at which another ended, and its share of all that the "
        "other took; ± over seeds. Where the learning rate falls until the end, a model that is "
        "there earlier has not had its own fall: what it gains is at least this."
    )
    header = ["model", "to the loss of", "loss", "tokens", "share", "seconds", "share"]
    return Table("To equal loss", header, table, note) if table else None


def _reaches(row: Row, goal: float) -> float | None:
    """Return the tokens, interpolated, at which a run's validation loss first reaches ``goal``.

    None if it never does, or if the run diverged later.
    """
    if math.isinf(final_loss(row)):
        return None
    curve = [*map(tuple, row["val_curve"]), (row["tokens"], row["val_loss"])]
    before = None
    for tokens, loss in curve:
        if loss <= goal:
            if before is None or not before[1] > goal:  # also NaN
                return tokens
            share = (before[1] - goal) / (before[1] - loss)
            return before[0] + share * (tokens - before[0])
        before = tokens, loss
    return None


def rates(tuned: dict[str, list[Row]], title: str) -> Table:
    """Tabulate loss by learning rate, or by its multiple of the automatic one, on one budget."""
    lrs = sorted({_rate(row) for rows in tuned.values() for row in rows})
    table = []
    for model, rows in tuned.items():
        losses = {_rate(row): Spread.of([row["val_loss"]]) for row in rows}
        cells = [losses[lr].text("{:.4f}".format) if lr in losses else "" for lr in lrs]
        best = min(losses, key=lambda lr: losses[lr].mean)
        edge = " (edge)" if len(losses) > 1 and best in (min(losses), max(losses)) else ""
        table.append([model, *cells, "" if losses[best].diverged else f"{best:g}{edge}"])
    some = max((row for rows in tuned.values() for row in rows), key=lambda row: row["tokens"])
    note = f"Validation loss after {large(some['tokens'])} tokens"
    note += "; a best rate at the edge may not be one."
    if _rate(some) != some["lr"]:
        note = f"Rates are multiples of what train.lr auto chooses for each model. {note}"
    return Table(title, ["model", *map("{:g}".format, lrs), "best"], table, note)


def _rate(row: Row) -> float:
    return row["rate" if "rate" in row else "lr"]  # older rows have no "rate"


def learning(full: dict[str, list[Row]]) -> Part:
    """Plot the first seed's validation loss over training, without the fall at the start.

    Beside that fall all models would look alike.
    """
    tokens = max(rows[0]["tokens"] for rows in full.values())
    unit, word = (1e6, "millions") if tokens >= 10e6 else (1e3, "thousands")
    lines = []
    for i, (model, rows) in enumerate(full.items()):
        curve = min(rows, key=lambda r: r["seed"])["val_curve"] or [[0.0, math.nan]]
        late = [point for point in curve if point[0] >= EARLY * curve[-1][0]]
        x, y = zip(*late, strict=True)
        lines.append(Series(model, [n / unit for n in x], y, colour=i, smooth=False))
    caption = (
        f"validation loss in nats per token against {word} of tokens, first seed, from "
        f"{EARLY:.0%} of the training on"
    )
    return line_figure("learning", "While training", caption, lines, WIDE, narrow_size=SMALL)


def positions(measured: dict[str, list[Row]], length: int) -> Table:
    """Tabulate loss by tokens of context, a column per model."""
    spans = [(b[0], b[1]) for b in max((rows[0]["bins"] for rows in measured.values()), key=len)]
    table = []
    for k, ends in enumerate(spans):
        cells = [
            Spread.of(r["bins"][k][2] for r in rows).text("{:.4f}".format)
            for rows in measured.values()
        ]
        table.append([span(*ends), *cells])
    whole = [Spread.of(r["loss"] for r in rows).text("{:.4f}".format) for rows in measured.values()]
    table.append(["all", *whole])
    note = "Nats per token; ± over seeds. The 95% intervals over texts are in results.jsonl."
    title = f"Loss by position, {length:,} tokens"
    return Table(title, ["tokens of context", *measured], table, note)


def positions_figures(measured: dict[str, list[Row]], length: int, reference: str) -> Part:
    """Plot loss by tokens of context, and each model's difference from the reference."""
    curves = {
        model: [Spread.of(r["bins"][k][2] for r in rows).mean for k in range(len(rows[0]["bins"]))]
        for model, rows in measured.items()
    }
    base = reference if reference in measured else min(curves, key=lambda m: or_inf(curves[m][-1]))
    ends = {
        model: [(b[0] * b[1]) ** 0.5 for b in rows[0]["bins"]] for model, rows in measured.items()
    }
    lines, off = [], []
    for i, (model, y) in enumerate(curves.items()):
        lines.append(Series(model, ends[model], y, colour=i))
        less = [a - b for a, b in zip(y, curves[base], strict=True)]
        off.append(Series(model, ends[model], less, colour=i))
    title, against = f"Loss by position, {length:,} tokens", "against tokens of context"
    name, caption = f"positions-{length}", f"nats per token {against}"
    parts = [line_figure(name, title, caption, lines, SMALL, log_x=True)]
    if len(off) > 1:
        caption = f"nats per token more than {base} {against}"
        title = f"Against {base}, {length:,} tokens"
        parts.append(line_figure(f"{name}-off", title, caption, off, SMALL, log_x=True))
    return Beside(parts)


Retrieved = dict[tuple[str, str], dict[int, tuple[Interval, float]]]
"""By model and task, then by length: accuracy and chance."""


def _retrieved(rows: Sequence[Row]) -> Retrieved:
    accuracies: Retrieved = {}
    for row in rows:
        if row["what"] == "needle":
            accuracy = Interval(row["accuracy"], row["low"], row["high"])
            at = accuracies.setdefault((row["model"], "needle"), {})
            at.setdefault(row["length"], (accuracy, row["chance"]))
        else:
            for pairs, mean, low, high, *_ in row["cells"]:
                at = accuracies.setdefault((row["model"], f"1 of {pairs} pairs"), {})
                at.setdefault(row["length"], (Interval(mean, low, high), 1.0 / pairs))
    return accuracies


def retrieval(rows: Sequence[Row]) -> Table:
    """Tabulate accuracy of needles and pairs by length, and where each falls to chance."""
    accuracies = _retrieved(rows)
    lengths = sorted({length for at in accuracies.values() for length in at})
    table = []
    for (model, task), at in accuracies.items():
        chance = next(iter(at.values()))[1]
        fallen = chance_length([(length, accuracy) for length, (accuracy, _) in at.items()], chance)
        cells = [
            ranged(a.mean, (a.low, a.high), "{:.2f}".format) if (a := at.get(n, (None,))[0]) else ""
            for n in lengths
        ]
        table.append([model, task, *cells, f"{chance:.3f}", or_over(fallen, max(at))])
    note = (
        "Share found by tokens of context, over all depths, first seed, with Wilson's 95% "
        "interval by text; at chance from: the length from which on no interval lies above chance."
    )
    if any(row["what"] == "needle" and "right" not in row for row in rows):
        note += (
            " Intervals of needles that an earlier version measured count the answers at all "
            "depths of a text as independent, and are too narrow."
        )
    header = ["model", "hidden", *(f"{n:,}" for n in lengths), "chance", "at chance from"]
    return Table("Needles and pairs", header, table, note)


def retrieval_figures(rows: Sequence[Row]) -> Part:
    """Plot accuracy by length, a figure per task."""
    accuracies = _retrieved(rows)
    models = list(dict.fromkeys(model for model, _ in accuracies))
    figures = []
    for k, task in enumerate(dict.fromkeys(task for _, task in accuracies)):
        lines, chance = [], 0.0
        for i, model in enumerate(models):
            at = accuracies.get((model, task), {})
            lengths = sorted(at)
            chance = at[lengths[0]][1] if lengths else chance
            lines.append(banded(model, lengths, [at[n][0] for n in lengths], i))
        caption = "share found by tokens of context, 95% band; dotted: chance"
        title = f"Retrieval: {task}"
        figures.append(
            line_figure(
                f"retrieval-{k}",
                title,
                caption,
                lines,
                SMALL,
                y_range=(-0.02, 1.02),
                log_x=True,
                marks=[chance],
            )
        )
    return Beside(figures)


def contexts(rows: Sequence[Row]) -> Table:
    """Tabulate the effective context, as measured by clearing the memory."""
    table = []
    for row in rows:
        most = row["cleared"][-1][0]
        least = [or_over(row[key], most) for key in ("context", "sure_context")]
        table.append([row["model"], f"{row['length']:,}", *least])
    note = (
        f"The fewest tokens of memory that cost no more than {TOLERANCE:g} nats against all of it, "
        "and the fewest that surely (95%) do not."
    )
    return Table("Effective context", ["model", "tokens", "context", "surely"], table, note)
