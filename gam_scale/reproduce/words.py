"""Sentences on what the reproduced tables show and do not show."""

from collections.abc import Sequence
from typing import Any

from gam_scale.reproduce.cells import MODELS_1
from gam_scale.reproduce.published import TABLE_1, TABLE_3
from gam_scale.reproduce.spread import Results
from gam_scale.reproduce.tables import MODELS, TITLES, lead

CLEAR = 2.0  # standard errors from which a difference counts as one

HANDICAPS = [
    "All models: position embeddings are drawn from N(0, 1) over token embeddings of standard "
    "deviation 1 / sqrt(3 width), 0.025 at the paper's width, and drown them. The scaled "
    "initialisation draws both from N(0, 0.02).",
    "GAM: its memory is a constant bank that each token reads for itself; only the convolution "
    "mixes tokens, so that no prediction sees more than 6 (3 - 1) + 1 = 13 tokens, whatever T is. "
    "Without this handicap the memory is written by the text (the gated delta rule, "
    "model.memory.kind = delta), which adds parameters.",
    "Mamba: the published baseline stacks bare blocks, with neither residual connections nor "
    "norms. Without this handicap blocks are pre-norm and residual, as Mamba is used.",
    "Transformer, table 2: the published block holds its T x T scores and weights in memory. The "
    "fused kernel, which torch has had since 2.0, computes the same and holds none of them.",
]


def shows(results: Results, blocks: Sequence[dict[str, Any]]) -> list[str]:
    """Return the findings, from the figures alone."""
    sentences = []
    for dataset in results.datasets():
        sentences += [*_positions(results, dataset), *_leads(results, dataset)]
    return sentences + _ablations(results) + _blocks(blocks)


def _positions(results: Results, dataset: str) -> list[str]:
    parts = []
    for model in MODELS_1:
        before = results.spread((dataset, model, "paper"), "val_perplexity")
        after = results.spread((dataset, model, "scaled"), "val_perplexity")
        if before and after:
            parts.append(f"{MODELS[model]} from {before.text()} to {after.text()}")
    if not parts:
        return []
    return [f"{TITLES[dataset]}: the scaled initialisation takes perplexity of {_list(parts)}."]


def _leads(results: Results, dataset: str) -> list[str]:
    sentences = []
    for other in MODELS_1[1:]:
        published = TABLE_1.get((dataset, other))
        states = []
        for setup, where in (
            ("paper", "in the paper's set-up"),
            ("scaled", "from the scaled initialisation"),
            ("unhandicapped", "without the handicaps"),
        ):
            if (difference := lead(results, dataset, other, setup)) is not None:
                states.append(f"{_order(*difference)} {where}")
        if states:
            paper = "The paper has GAM ahead; here" if published else "Not in the paper; here"
            sentences.append(
                f"{TITLES[dataset]}, GAM and {MODELS[other]}: {paper} {_list(states)}."
            )
    return sentences


def _order(difference: float, error: float | None) -> str:
    if error is None:
        return f"GAM is {'ahead' if difference < 0 else 'behind'} (one seed)"
    if abs(difference) < CLEAR * error:
        return "the two are within the spread of seeds"
    return f"GAM is {'ahead' if difference < 0 else 'behind'}"


def _ablations(results: Results) -> list[str]:
    sentences = []
    for setup, where in (
        ("paper", "In the paper's set-up"),
        ("scaled", "From the scaled initialisation"),
    ):
        cells = {
            model: spread
            for model in TABLE_3
            if (spread := results.spread(("wikitext2", model, setup), "val_perplexity"))
        }
        if len(cells) == len(TABLE_3):
            order = sorted(cells, key=lambda model: cells[model].mean)
            names = [f"{MODELS[model]} ({cells[model].text()})" for model in order]
            sentences.append(f"{where}, the ablations by perplexity: {_list(names)}.")
    if sentences:
        published = sorted(TABLE_3, key=lambda model: TABLE_3[model].perplexity)
        sentences.append(f"The paper's order is {_list([MODELS[m] for m in published])}.")
    return sentences


def _blocks(blocks: Sequence[dict[str, Any]]) -> list[str]:
    measured = {(b["kind"], b["T"]): b for b in blocks if b["ms"] is not None}
    sentences = []
    for other, name in (
        ("transformer", "without the fused kernel"),
        ("fused", "with the fused kernel"),
    ):
        lengths = [T for kind, T in measured if kind == other and ("gam", T) in measured]
        if lengths:
            longest = max(lengths)
            gam, theirs = measured["gam", longest], measured[other, longest]
            sentences.append(
                f"At {longest:,} tokens a Transformer block {name} takes "
                f"{theirs['ms'] / gam['ms']:.2f} times as long as a GAM block, and "
                f"{theirs['bytes'] / gam['bytes']:.2f} times the memory."
            )
    return sentences


def does_not_show(results: Results, scale: float, notes: Sequence[str]) -> list[str]:
    """Return the limits of the figures."""
    sentences = []
    if scale < 1:
        sentences.append(
            f"This is scale {scale:g}: small models, trained shortly. Figures here compare with "
            "one another, not with the published ones, and an order may change with size."
        )
        if any(model == "mamba" for _, model, _ in results.cells):
            sentences.append(
                "Bare Mamba blocks keep the paper's learning rate, at which so few steps hardly "
                "train them: their values overflow at the others' rate. Their two columns tell of "
                "the stack and of this scale, not of Mamba."
            )
    if results.cells:
        sentences += [
            "Perplexities are per token of our sentencepiece tokenizer (byte fallback, trained on "
            "the training split); the paper's splits at whitespace and punctuation and was trained "
            "on every split. Even at full size only comparisons within a column carry over.",
            "Learning rates were not tuned, neither for a model nor for a set-up.",
            "The written memory has more parameters than the constant one (see the tables).",
            "Published figures are of one run each. The same model has 882.57 in table 1 and "
            "900.84 in table 3, a difference as large as several between models.",
        ]
    if 0 < results.seeds() < 3:
        sentences.append("Two seeds or fewer give a rough idea of the spread at best.")
    uneven = {len(rows) for rows in results.cells.values()}
    if len(uneven) > 1:
        sentences.append(
            f"Cells have {min(uneven)} to {max(uneven)} seeds: some runs are not done."
        )
    return [*sentences, *notes]


def _list(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
