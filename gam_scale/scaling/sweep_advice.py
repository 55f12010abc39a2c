"""Warn of what a planned sweep cannot show, and of suspicious results."""

from collections.abc import Callable, Sequence
from pathlib import Path

from gam_scale.data.manifest import MANIFEST_FILE, read_manifest
from gam_scale.experiment.cell import Row
from gam_scale.grouping import grouped
from gam_scale.report.numbers import large, scientific
from gam_scale.scaling.runs_csv import FLOPS_PER_PAIR
from gam_scale.scaling.sweep_cell import SweepCell

MIN_STEPS = 500
"""Steps below which a loss reflects the warm-up and the optimizer more than the size."""
MIN_RATIO = 1.0
"""Tokens per parameter below which a model is hardly trained."""
MIN_SIZES = 4
"""Fewest sizes that tell the exponent of size from the other constants, and show a best size."""
MIN_SPAN = 8.0
"""Least ratio of the largest to the smallest size, for the same purposes."""
USUAL_RATIO = 20.0
"""Tokens per parameter that spend a budget of FLOPs about best (arXiv 2203.15556)."""


def warnings(cells: Sequence[SweepCell]) -> list[str]:
    """Return a sentence on each fault of a plan; empty if there is none.

    Args:
        cells: all cells of the sweep, or those beyond its grid.
    """
    grid = [cell for cell in cells if cell.of_the_grid]
    measured = [cell for cell in cells if cell.of_the_grid or cell.beyond]
    sentences = [
        _counted(
            measured,
            lambda cell: cell.config.train.steps < MIN_STEPS,
            f"have fewer than {MIN_STEPS} steps, whose loss is of the warm-up more than of the "
            "size; expected smaller batches, larger budgets, or --min-steps for the report",
        ),
        _counted(
            measured,
            lambda cell: cell.tokens < MIN_RATIO * cell.params,
            "have less than one token a parameter; expected larger budgets or smaller widths",
        ),
        _counted(
            measured,
            lambda cell: cell.flops > FLOPS_PER_PAIR[1] * cell.params * cell.tokens,
            f"spend more than {FLOPS_PER_PAIR[1]:g} FLOPs for each parameter and token, mostly on "
            "a head that N leaves out, and a report refuses them; expected larger widths, a "
            "smaller vocabulary, or another count of parameters",
        ),
    ]
    sentences += [repeated(cells), *_patterns(cells)]
    for family, members in grouped(grid, lambda cell: cell.family).items():
        sentences += _of_sizes(family, sorted({cell.params for cell in members}))
    isoflop = [cell for cell in grid if cell.flops_budget is not None]
    for key, members in grouped(isoflop, lambda cell: (cell.family, cell.flops_budget)).items():
        sentences.append(_of_budget(key[0], key[1] or 0.0, members))
    return [sentence for sentence in sentences if sentence]


def repeated(cells: Sequence[SweepCell]) -> str:
    """Return a warning of runs that see text more than once; empty if none, or no data is here."""
    sentences = []
    for path, members in grouped(cells, lambda cell: cell.config.data.sets[0].path).items():
        if not (Path(path) / MANIFEST_FILE).exists():
            continue
        there = read_manifest(path).splits["train"].tokens
        if again := [cell for cell in members if cell.tokens > there]:
            most = max(again, key=lambda cell: cell.tokens)
            sentences.append(
                f"{len(again)} of {len(members)} runs see the {large(there)} training tokens of "
                f"{path} more than once, {most.name} {most.tokens / there:.3g} times, and a law "
                "takes every token to be new; expected more text or smaller budgets"
            )
    return "; ".join(sentences)


def _patterns(cells: Sequence[SweepCell]) -> list[str]:
    """Return a warning for each family and width whose layers end within their pattern."""
    cut = {}
    for cell in cells:
        model = cell.config.model
        if len(model.layers) > 1 and model.n_layers % len(model.layers):
            cut[cell.family, cell.width] = model.n_layers, len(model.layers)
    return [
        f"{family} of width {width} has {layers} layers of a pattern of {pattern}, so that it "
        "mixes kinds in other shares than sizes of whole patterns; expected multiples of it"
        for (family, width), (layers, pattern) in cut.items()
    ]


def suspicions(done: Sequence[tuple[SweepCell, Row]]) -> list[str]:
    """Return, for each family and seed, a sentence on the run that a smaller one beats by most.

    Only larger models that saw at least as many tokens count: if one of these is worse, a wrong
    learning rate is likelier than a model that is really worse.
    """
    grid = [
        (cell, row["loss"]) for cell, row in done if cell.of_the_grid and row["loss"] is not None
    ]
    sentences = []
    for (family, _), runs in grouped(grid, lambda each: (each[0].family, each[0].seed)).items():
        pairs = [
            (small, big, worse - better)
            for small, better in runs
            for big, worse in runs
            if big.params > small.params and big.tokens >= small.tokens and worse > better
        ]
        if pairs:
            small, big, nats = max(pairs, key=lambda pair: pair[2])
            sentences.append(
                f"{family}: {big.name} is larger than {small.name}, saw as many tokens or more, "
                f"and is worse by {nats:.3f} nats; suspect the learning rate"
            )
    return sentences


def _counted(cells: Sequence[SweepCell], wrong: Callable[[SweepCell], bool], words: str) -> str:
    those = [cell for cell in cells if wrong(cell)]
    return f"{len(those)} of {len(cells)} runs, such as {those[0].name}, {words}" if those else ""


def _of_sizes(family: str, sizes: Sequence[int]) -> list[str]:
    if len(sizes) < MIN_SIZES:
        return [
            f"{family} has {_sizes(len(sizes))}; expected {MIN_SIZES} or more, for a law of size "
            "has three constants"
        ]
    if sizes[-1] < MIN_SPAN * sizes[0]:
        return [
            f"{family} has sizes from {large(sizes[0])} to {large(sizes[-1])}; expected a factor "
            f"of {MIN_SPAN:g} between them, or the exponent of size is a guess"
        ]
    return []


def _sizes(count: int) -> str:
    return f"{count} size{'s' * (count != 1)}"


def _of_budget(family: str, budget: float, cells: Sequence[SweepCell]) -> str:
    """Return a warning unless a budget's sizes probably lie on both sides of the best one."""
    if (sizes := len({cell.params for cell in cells})) < MIN_SIZES:
        return (
            f"{family} has {_sizes(sizes)} on {scientific(budget)} FLOPs; expected "
            f"{MIN_SIZES} or more, or no best size can be read off there"
        )
    ratios = sorted(cell.tokens / cell.params for cell in cells)
    if ratios[0] < USUAL_RATIO < ratios[-1]:
        return ""
    few, wanted = ("more", "larger") if ratios[0] >= USUAL_RATIO else ("fewer", "smaller")
    return (
        f"{family}: all sizes on {scientific(budget)} FLOPs have {few} than {USUAL_RATIO:g} tokens "
        f"a parameter, so that the best may lie beyond them; expected {wanted} widths as well"
    )
