"""The file of a sweep: families, sizes, budgets, seeds, and the constants of its rules."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gam_scale.errors import UserError
from gam_scale.model.short_form import block_option, memory_option
from gam_scale.strict import from_dict, option, read_json, section

RULED = {
    "lr": "expected families.lr or lrs, or dial.lr",
    "steps": "expected budgets",
    "epochs": "expected budgets",
    "stages": "expected budgets",
    "seed": "expected seeds",
    "global_batch_size": "expected dial.batch_size",
    "warmup_steps": "expected dial.warmup_ratio and warmup_steps",
    "schedule": "expected none: all runs have wsd",
    "decay_ratio": "expected dial.decay_ratio",
}
"""Settings of the train section that a sweep derives, each with what to set instead."""


@dataclass
class FamilySpec:
    """One kind of model."""

    name: str = option(
        "", "name of the family, in the column family of the collected CSV and in folders' names"
    )
    block: str = block_option("model.block")
    memory: str = memory_option("model.memory.kind, of gam blocks")
    lr: float = option(0.0, "peak learning rate at dial.base_width; 0: dial.lr", at_least=0)
    lrs: dict[str, float] = option(
        {},
        'instead of lr, the best peak learning rates at two widths, such as {"64": 0.01, "256": '
        "0.004}; every width has the rate of the power law through both",
    )
    set: dict[str, Any] = option(
        {}, "further settings of the family's runs, by section, which override those of the sweep"
    )


@dataclass
class DialSpec:
    """Constants of the rules that derive all other settings from a width."""

    width_per_layer: int = option(
        32, "width for each layer: there are width / width_per_layer layers", at_least=1
    )
    min_layers: int = option(
        2, "fewest layers, such as the length of a pattern of layers", at_least=1
    )
    head_channels: int = option(32, "channels of each head", at_least=2)
    base_width: int = option(128, "width at which lr holds", at_least=1)
    lr: float = option(3e-3, "peak learning rate at base_width", above=0)
    lr_power: float = option(
        1.0, "power of base_width / width by which lr is multiplied", at_least=0
    )
    batch_size: int = option(8, "sequences per step", at_least=1)
    warmup_ratio: float = option(
        0.1, "warm-up steps, as a share of the steps of the smallest budget", at_least=0, below=1
    )
    warmup_steps: int = option(0, "fewest warm-up steps", at_least=0)
    decay_ratio: float = option(
        0.2, "share of the steps, at the end, in which wsd decays", at_least=0, at_most=1
    )


@dataclass
class RepeatSpec:
    """Runs of one width from further seeds, which show how much a seed matters."""

    width: int = option(0, "width to repeat, one of the sweep's; 0: none", at_least=0)
    seeds: list[int] = option([], "train.seed of each repetition", at_least=0)
    up_to: float = option(0.0, "largest of the budgets to repeat; 0: all of them", at_least=0)


@dataclass
class ContextSpec:
    """Runs of one width on texts of other lengths, at the tokens of one budget."""

    width: int = option(
        0, "width to train at other lengths, one of the sweep's; 0: none", at_least=0
    )
    seq_lens: list[int] = option(
        [], "tokens of context, in runs beside those of seq_len", at_least=1
    )
    up_to: float = option(
        0.0, "the budget whose number of tokens they see; 0: the largest", at_least=0
    )


@dataclass
class BeyondSpec:
    """One run of each of some families beyond the grid, by the grid's own rules."""

    families: list[str] = option([], "names of families, each of which is trained so once")
    width: int = option(0, "width of the run, which need not be one of widths", at_least=2)
    budget: float = option(0.0, "its budget, above all of budgets and in their unit", above=0)


@dataclass
class SweepSpec:
    """A sweep file."""

    families: list[FamilySpec] = option([], "kinds of model to train")
    widths: list[int] = option([], "widths, each of which sets the size of a model", at_least=2)
    budgets: list[float] = option(
        [], "training budgets in tokens, or in FLOPs with kind isoflop", above=0
    )
    kind: Literal["tokens", "isoflop"] = option(
        "tokens", "tokens: every size is trained on the same numbers of tokens; isoflop: of FLOPs"
    )
    min_steps: int = option(
        0,
        "fewest optimizer steps; a size is not trained on a budget that gives it fewer",
        at_least=0,
    )
    ratios: list[float] = option(
        [],
        "fewest and most tokens per parameter, such as [1, 200]; a size is not trained on a budget "
        "outside of them; empty: any",
        above=0,
    )
    seeds: list[int] = option(
        [0], "train.seed of the runs; each run is trained from every seed", at_least=0
    )
    repeat: RepeatSpec = section(RepeatSpec, "one width from further seeds")
    context: ContextSpec = section(ContextSpec, "one width on texts of other lengths")
    beyond: list[BeyondSpec] = option(
        [],
        'runs whose loss is to be forecast, such as [{"families": ["a"], "width": 512, "budget": '
        "1e15}]; learning rate, warm-up and the rest follow from the grid as if they were in it; "
        "no law is fitted to them, and they are trained with --beyond alone",
    )
    lr_multipliers: list[float] = option(
        [],
        "multiples of the learning rate; each is tried in further runs, of the smallest width on "
        "the smallest budget and of the largest width on the largest",
        above=0,
    )
    vocab_size: int = option(0, "model.vocab_size, at least the tokenizer's", at_least=1)
    data: str = option("", "folder of a prepared set, which tools/prepare_data.py wrote")
    seq_len: int = option(256, "tokens of context per training sequence", at_least=1)
    count: Literal["with_head", "blocks"] = option(
        "with_head",
        "what the column params counts; with_head: blocks, norm and the tied head, whose FLOPs are "
        "spent on every token; blocks: the same without the head. Position embeddings never count",
    )
    dial: DialSpec = section(DialSpec, "the constants of the rules")
    set: dict[str, Any] = option({}, "further settings of every run, by section")


def read_sweep(path: str | Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        UserError: the file is not valid; the message names the key.
    """
    spec: SweepSpec = from_dict(SweepSpec, read_json(path))
    try:
        _check(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return spec


def _check(spec: SweepSpec) -> None:
    for key in ("families", "widths", "budgets", "seeds", "data"):
        if not getattr(spec, key):
            raise UserError(f"{key} is empty; expected at least one")
    if not spec.vocab_size:
        raise UserError("vocab_size is missing; expected at least the tokenizer's")
    for key in ("widths", "budgets", "seeds", "lr_multipliers"):
        if len(set(getattr(spec, key))) < len(getattr(spec, key)):
            raise UserError(f"{key} has a value twice; expected each once")
    if spec.ratios and (len(spec.ratios) != 2 or spec.ratios[0] >= spec.ratios[1]):
        raise UserError(f"ratios is {spec.ratios}; expected two, the smaller one first, or none")
    names = [family.name for family in spec.families]
    for name in names:
        if not name or names.count(name) > 1 or not name.replace("-", "").isalnum():
            raise UserError(
                f"families has the name {name!r}; expected letters, digits and hyphens, each name "
                "once"
            )
    if 1 in spec.lr_multipliers:
        raise UserError("lr_multipliers has 1; expected others, 1 is the sweep itself")
    for key, widths in (("widths", spec.widths), ("beyond.width", [b.width for b in spec.beyond])):
        for width in widths:
            if width % spec.dial.head_channels:
                raise UserError(
                    f"{key} has {width}; expected multiples of dial.head_channels "
                    f"{spec.dial.head_channels}"
                )
    _check_settings("set", spec.set)
    for family in spec.families:
        _check_rates(family)
        _check_settings(f"families.{family.name}.set", family.set)
    _check_further(spec)
    _check_beyond(spec)


def _check_settings(where: str, settings: dict[str, Any]) -> None:
    """Refuse settings that the sweep's own rules would overwrite."""
    for name in settings.get("train") or {}:
        if name in RULED:
            raise UserError(f"{where} has train.{name}, which the sweep itself sets; {RULED[name]}")


def _check_rates(family: FamilySpec) -> None:
    where, lrs = f"families: {family.name} has", family.lrs
    if family.lr and lrs:
        raise UserError(f"{where} lr and lrs; expected one of them")
    widths = {int(width) for width in lrs if width.isascii() and width.isdigit()} - {0}
    if lrs and not (len(widths) == len(lrs) == 2 and min(lrs.values()) > 0):
        raise UserError(f'{where} lrs {lrs}; expected two widths and rates, {{"64": 0.01, ...}}')


def _check_further(spec: SweepSpec) -> None:
    """Check ``repeat`` and ``context``, the runs beside the grid."""
    for key, values, width, up_to in (
        ("repeat.seeds", spec.repeat.seeds, spec.repeat.width, spec.repeat.up_to),
        ("context.seq_lens", spec.context.seq_lens, spec.context.width, spec.context.up_to),
    ):
        if bool(values) != bool(width) or (width and width not in spec.widths):
            raise UserError(
                f"{key} is {values} with the width {width}; expected values and one of widths, "
                "or neither"
            )
        if len(set(values)) < len(values):
            raise UserError(f"{key} has a value twice; expected each once")
        if up_to and up_to not in spec.budgets:
            raise UserError(
                f"{key.partition('.')[0]}.up_to is {up_to:g}; expected one of budgets, or 0"
            )
    for seed in spec.repeat.seeds:
        if seed in spec.seeds:
            raise UserError(f"repeat.seeds has {seed}, which is one of seeds; expected others")
    for seq_len in spec.context.seq_lens:
        if seq_len == spec.seq_len or spec.dial.batch_size * spec.seq_len % seq_len:
            raise UserError(
                f"context.seq_lens has {seq_len}; expected lengths other than seq_len of which "
                f"the {spec.dial.batch_size * spec.seq_len} tokens of a step are a multiple"
            )


def _check_beyond(spec: SweepSpec) -> None:
    """Check ``beyond``, the runs that a law is to forecast."""
    names, runs = [family.name for family in spec.families], list[tuple[str, int, float]]()
    for each in spec.beyond:
        if not each.families or not each.width or not each.budget:
            raise UserError("beyond has a run without families, width or budget; expected all")
        if each.budget <= max(spec.budgets):
            raise UserError(
                f"beyond has the budget {each.budget:g}; expected more than {max(spec.budgets):g}, "
                "the largest of budgets"
            )
        for name in each.families:
            if name not in names:
                raise UserError(
                    f"beyond has the family {name!r}; expected one of {', '.join(names)}"
                )
        runs += [(name, each.width, each.budget) for name in each.families]
    if len(set(runs)) < len(runs):
        raise UserError("beyond has a run twice; expected each once")
