"""The paper's tables with our figures beside the published ones."""

from collections.abc import Sequence
from typing import Any

from gam_scale.experiment.spread import Spread
from gam_scale.report.numbers import Form, plus_minus
from gam_scale.report.table import Table
from gam_scale.reproduce.blocks import KINDS, MIB
from gam_scale.reproduce.cells import MODELS_1, MODELS_3
from gam_scale.reproduce.published import TABLE_1, TABLE_2, TABLE_3
from gam_scale.reproduce.spread import Results

TITLES = {"wikitext2": "WikiText-2", "tinystories": "TinyStories"}
MODELS = {
    "gam": "GAM",
    "transformer": "Transformer",
    "mamba": "Mamba",
    "gam-global": "GAM global only",
    "gam-sum": "GAM sum fusion",
    "gam-local": "GAM local only",
}
SETUPS = {"paper": "paper's set-up", "scaled": "scaled init", "unhandicapped": "no handicap"}
REMOVED = {"gam": "written memory", "mamba": "residual, norm"}
BLOCKS = {"gam": "GAM", "transformer": "Transformer, unfused", "fused": "Transformer, fused"}
PARTS = {
    "gam": ("gate", "both"),
    "gam-global": ("sum", "global"),
    "gam-sum": ("sum", "both"),
    "gam-local": ("sum", "local"),
}


def tables(results: Results, blocks: Sequence[dict[str, Any]]) -> list[Table]:
    """Return every table for which something was measured."""
    of_runs = []
    for dataset in results.datasets():
        of_runs += [perplexities(results, dataset), details(results, dataset)]
    made = [table for table in [*of_runs, leads(results)] if table.rows]
    if blocks:
        made += [block_times(blocks), block_memory(blocks)]
    if any((("wikitext2", model, "paper") in results.cells) for model in MODELS_3[1:]):
        made.append(ablations(results))
    return made


def perplexities(results: Results, dataset: str) -> Table:
    """Return table 1: perplexities in the published set-up, and without its handicaps."""
    rows = []
    for model in MODELS_1:
        cells = {
            setup: results.spread((dataset, model, setup), "val_perplexity") for setup in SETUPS
        }
        if not any(cells.values()):
            continue
        published = TABLE_1.get((dataset, model))
        best = cells["unhandicapped"] or cells["scaled"]
        rows.append(
            [
                MODELS[model],
                _params(results, dataset, model, "paper"),
                f"{published.perplexity:,.2f}" if published else "not published",
                *(_shown(cells[s]) for s in ("paper", "scaled")),
                _shown(cells["unhandicapped"]) if model in REMOVED else "the same",
                _change(best, cells["paper"]),
            ]
        )
    header = ["model", "parameters", "published", *SETUPS.values(), "change"]
    note = (
        "Validation perplexity per token after the last step; ± is the standard deviation over "
        f"{_count(results.seeds())}. No handicap: GAM with a memory that the text writes, Mamba "
        "blocks with residual connections and norms, both from the scaled initialisation. Change: "
        "from the paper's set-up to the last of them."
    )
    return Table(f"Table 1: {TITLES[dataset]}", header, rows, note)


def details(results: Results, dataset: str) -> Table:
    """Return the losses and times of table 1."""
    rows = []
    for model in MODELS_1:
        for setup in SETUPS:
            key = (dataset, model, setup)
            if (row := results.first(key)) is None:
                continue
            published = TABLE_1.get((dataset, model)) if setup == "paper" else None
            seconds = [r["epoch_tokens"] / r["tokens_per_s"] for r in results.cells[key]]
            rows.append(
                [
                    f"{MODELS[model]}, {_setup(model, setup)}",
                    f"{row['params']:,}",
                    _shown(results.spread(key, "train_loss"), "{:.3f}".format),
                    _shown(results.spread(key, "val_loss"), "{:.3f}".format),
                    f"{published.loss:.4f}" if published else "",
                    _shown(results.spread(key, "val_bits_per_byte"), "{:.3f}".format),
                    _shown(Spread.of(seconds), "{:,.0f}".format),
                    f"{published.epoch_seconds:,.1f}" if published else "",
                    str(len(results.cells[key])),
                ]
            )
    header = ["model and set-up", "parameters", "training", "validation", "published"]
    header += ["bits/byte", "s / epoch", "published", "seeds"]
    note = (
        "Losses in nats per token. The training loss is the mean of the last tenth of the steps, "
        "with dropout; none is published. Written memory, and residual and norm, start from the "
        "scaled initialisation too. Seconds an epoch: its tokens over the median speed."
    )
    return Table(f"Table 1: {TITLES[dataset]}, losses and time", header, rows, note)


def leads(results: Results) -> Table:
    """Return a table of GAM's validation loss minus each baseline's, in every set-up."""
    rows = []
    for dataset in results.datasets():
        for other in MODELS_1[1:]:
            cells = [lead(results, dataset, other, setup) for setup in SETUPS]
            if any(cells):
                name = f"{TITLES[dataset]}: GAM less {MODELS[other]}"
                rows.append([name, _published_lead(dataset, other)])
                rows[-1] += [_difference(cell) for cell in cells]
    note = (
        "Difference of the validation losses in nats; below 0, GAM is better. ± is its standard "
        "error over seeds. With no handicap: GAM's written memory against the Transformer from the "
        "scaled initialisation and against the residual Mamba."
    )
    return Table("Is GAM ahead?", ["models", "published", *SETUPS.values()], rows, note)


def _published_lead(dataset: str, other: str) -> str:
    gam, theirs = TABLE_1[dataset, "gam"], TABLE_1.get((dataset, other))
    if theirs is None or gam.loss is None or theirs.loss is None:
        return "not published"
    return f"{gam.loss - theirs.loss:+.3f}"


def lead(
    results: Results, dataset: str, other: str, setup: str
) -> tuple[float, float | None] | None:
    """Return GAM's validation loss minus another model's, and the difference's standard error.

    A model without an unhandicapped set-up counts there in its scaled one.
    """
    gam = results.spread((dataset, "gam", setup), "val_loss")
    theirs = results.spread((dataset, other, setup), "val_loss")
    if setup == "unhandicapped" and other not in REMOVED:
        theirs = results.spread((dataset, other, "scaled"), "val_loss")
    return gam.difference(theirs) if gam and theirs else None


def block_times(blocks: Sequence[dict[str, Any]]) -> Table:
    """Return the times of table 2, in milliseconds."""
    published = "Published: the mean of 20, of 16 sequences, fp16, on a GPU that is not named."
    note = f"{_block_note(blocks)} {published}"
    return _blocks("Table 2: ms of forward and backward of one block", blocks, "ms", note)


def block_memory(blocks: Sequence[dict[str, Any]]) -> Table:
    """Return the memory of table 2."""
    note = (
        "The most that tensors took at once, parameters and gradients among them, in MB of 1024 * "
        "1024 bytes as published."
    )
    return _blocks("Table 2: memory of one block, MB", blocks, "megabytes", note)


def _blocks(title: str, blocks: Sequence[dict[str, Any]], column: str, note: str) -> Table:
    measured = {(b["kind"], b["T"]): b for b in blocks}
    rows = []
    for length in sorted({b["T"] for b in blocks}):
        row = [f"{length:,}"]
        for kind in ("gam", "transformer"):
            published = TABLE_2.get((kind, length))
            value = getattr(published, column) if published else None
            row.append(_figure(published, value, "did not fit"))
        for kind in KINDS:
            block = measured.get((kind, length))
            value = _in_units(block, column) if block else None
            row.append(_figure(block, value, "does not fit"))
        rows.append(row)
    header = ["T", "GAM, published", "Transformer, published", *(BLOCKS[kind] for kind in KINDS)]
    return Table(title, header, rows, note)


def _in_units(block: dict[str, Any], column: str) -> float | None:
    """Return a block's milliseconds, or its memory in units of 1024 * 1024 bytes."""
    if column == "ms":
        return block["ms"]
    return None if block["bytes"] is None else block["bytes"] / MIB


def _figure(measurement: object, value: float | None, too_large: str) -> str:
    """Format a cell of table 2; empty if nothing was measured."""
    if measurement is None:
        return ""
    return too_large if value is None else f"{value:,.1f}"


def _block_note(blocks: Sequence[dict[str, Any]]) -> str:
    some = next((b for b in blocks if b["ms"] is not None), blocks[0])
    on = "fp32, processor time of one thread of a CPU (fused: without dropout)"
    if some["device"] != "cpu":
        on = f"fp16 autocast, on {some['device']}"
    return (
        f"Ours: width 512, {some['batch']} sequences, {on}, eager; the fastest of "
        f"{some.get('timed', 0)} passes. Unfused, as published, the Transformer holds its T x T "
        "scores in memory."
    )


def ablations(results: Results) -> Table:
    """Return table 3, with the change of each row's perplexity from the full model's."""
    rows, full = [], ("wikitext2", "gam")
    for model in MODELS_3:
        published, base = TABLE_3[model], TABLE_3["gam"]
        row = [MODELS[model], *PARTS[model], _params(results, "wikitext2", model, "paper")]
        over_full = _percent(published.perplexity / base.perplexity - 1)
        row += [f"{published.perplexity:,.2f}", over_full]
        for setup in ("paper", "scaled"):
            ours = results.spread(("wikitext2", model, setup), "val_perplexity")
            whole = results.spread((*full, setup), "val_perplexity")
            row += [_shown(ours), _change(ours, whole)]
        rows.append(row)
    header = ["model", "fusion", "paths", "parameters", "published", "over full"]
    header += [SETUPS["paper"], "over full", SETUPS["scaled"], "over full"]
    note = (
        "Validation perplexity on WikiText-2. As published, a single path has no gate. The full "
        "model is the run of table 1: the paper gives it 882.57 there and 900.84 here."
    )
    return Table("Table 3: ablations", header, rows, note)


def _setup(model: str, setup: str) -> str:
    return REMOVED[model] if setup == "unhandicapped" else SETUPS[setup]


def _params(results: Results, dataset: str, model: str, setup: str) -> str:
    row = results.first((dataset, model, setup))
    return f"{row['params']:,}" if row else ""


def _shown(spread: Spread | None, form: Form = "{:,.1f}".format) -> str:
    return spread.text(form) if spread else ""


def _change(spread: Spread | None, base: Spread | None) -> str:
    over = spread.over(base) if spread and base else None
    return "" if over is None else _percent(over)


def _percent(value: float) -> str:
    return f"{value:+.1%}"


def _difference(pair: tuple[float, float | None] | None) -> str:
    return plus_minus(*pair, "{:+.3f}".format) if pair else ""


def _count(seeds: int) -> str:
    return f"{seeds} seeds" if seeds > 1 else "seeds (there is one only)"
