"""A sweep: families, sizes, budgets and seeds from one small JSON file, each cell a run's config.

One dial, the width d, sets a size by these rules:

* depth: d / ``width_per_layer``, at least 2: width and depth grow together.
* heads of ``head_channels`` channels; a static bank of d rows, written slots of d / 4, so that
  memories grow with the model.
* learning rate: lr * (base_width / d) ** lr_power, with the ``lr`` of the family where it has one.
  A power of 1 is arXiv 2203.03466, table 3: Adam's rate for hidden matrices falls as 1 / width. The
  embedding's rate does not, so a smaller power suits models that are mostly embedding.
* batch: ``batch_size`` sequences, at every size and budget.

The schedule is warmup-stable-decay, so that budgets share what they can (arXiv 2405.18392): the
run of the largest budget is the trunk, and smaller ones branch off it where their own decay begins,
from the checkpoint that it keeps there. Batch, learning rate and warm-up (a share of the smallest
budget's steps) are therefore one for all budgets of a size, and a branch is, bit for bit, the run
of its own that it stands for.

``lr_multipliers`` asks how much the learning rate matters: the smallest width at the smallest
budget, once more at each multiple.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.experiment.cell import FORWARD_AND_BACKWARD
from gam_scale.experiment.grid import Grid
from gam_scale.model.lm import outline
from gam_scale.model.short_form import block_option, memory_option
from gam_scale.scaling.sweep_cell import SweepCell
from gam_scale.schedule import stable_steps
from gam_scale.strict import from_dict, option, read_json, section


@dataclass
class FamilySpec:
    """One kind of model."""

    name: str = option("", "the family column of the collected CSV, and a folder's name")
    block: str = block_option("model.block")
    memory: str = memory_option("model.memory.kind, of gam blocks")
    lr: float = option(0.0, "peak learning rate at dial.base_width; 0: dial.lr", at_least=0)


@dataclass
class DialSpec:
    """The constants of the rules above."""

    width_per_layer: int = option(32, "width for each layer of depth", at_least=1)
    head_channels: int = option(32, "channels of a head", at_least=2)
    base_width: int = option(128, "width at which lr holds", at_least=1)
    lr: float = option(3e-3, "peak learning rate at base_width", above=0)
    lr_power: float = option(
        1.0, "of base_width over the width, by which the learning rate is multiplied", at_least=0
    )
    batch_size: int = option(8, "sequences a step", at_least=1)
    warmup_ratio: float = option(
        0.1, "steps that warm up, as a share of the smallest budget's", at_least=0, below=1
    )
    decay_ratio: float = option(0.2, "share of steps in which wsd decays", at_least=0, at_most=1)


@dataclass
class SweepSpec:
    """A sweep file."""

    families: list[FamilySpec] = option([], "the kinds of model")
    widths: list[int] = option([], "the dial: one size each", at_least=2)
    budgets: list[float] = option([], "tokens each, or FLOPs each with kind isoflop", above=0)
    kind: Literal["tokens", "isoflop"] = option(
        "tokens", "tokens: every size on the same budgets of tokens; isoflop: of FLOPs"
    )
    seeds: list[int] = option([0], "train.seed of repeated runs", at_least=0)
    lr_multipliers: list[float] = option(
        [], "of the learning rate, each a further run of the smallest width and budget", above=0
    )
    vocab_size: int = option(0, "model.vocab_size, at least the tokenizer's", at_least=1)
    data: str = option("", "folder that tools/prepare_data.py wrote")
    seq_len: int = option(256, "tokens of context", at_least=1)
    count: Literal["with_head", "blocks"] = option(
        "with_head",
        "what the params column counts; with_head: blocks, norm and the tied head, whose FLOPs are "
        "spent on every token; blocks: without it. Position embeddings never count",
    )
    dial: DialSpec = section(DialSpec, "the constants of the rules")
    set: dict[str, Any] = option({}, "further settings of every run, by section")


def read_sweep(path: str | Path) -> SweepSpec:
    """Read and check a sweep file.

    Raises:
        UserError: naming the key.
    """
    spec: SweepSpec = from_dict(SweepSpec, read_json(path))
    for key in ("families", "widths", "budgets", "seeds", "data"):
        if not getattr(spec, key):
            raise UserError(f"{path}: {key} is empty; expected at least one")
    for key in ("widths", "budgets", "seeds", "lr_multipliers"):
        if len(set(getattr(spec, key))) < len(getattr(spec, key)):
            raise UserError(f"{path}: {key} has a value twice; expected each once")
    names = [family.name for family in spec.families]
    for name in names:
        if not name or names.count(name) > 1 or not name.replace("-", "").isalnum():
            raise UserError(
                f"{path}: families has the name {name!r}; expected letters, digits and hyphens, "
                "each name once"
            )
    if 1 in spec.lr_multipliers:
        raise UserError(f"{path}: lr_multipliers has 1; expected others, 1 is the sweep itself")
    for width in spec.widths:
        if width % spec.dial.head_channels:
            raise UserError(
                f"{path}: widths has {width}; expected multiples of dial.head_channels "
                f"{spec.dial.head_channels}"
            )
    return spec


def sweep_grid(spec: SweepSpec, folder: Path) -> Grid[SweepCell]:
    """The runs of the sweep, in ``folder``; a job is a trunk and its branches, cheap ones first."""
    jobs = [
        _trunk_and_branches(spec, folder, *axes)
        for axes in product(spec.families, spec.widths, spec.seeds)
    ]
    width, budget, seed = min(spec.widths), min(spec.budgets), spec.seeds[0]
    for family, factor in product(spec.families, spec.lr_multipliers):
        jobs.append([_cell(spec, folder, family, width, budget, seed, factor)])
    return Grid(sorted(jobs, key=lambda job: sum(cell.own_flops for cell in job)))


def _trunk_and_branches(
    spec: SweepSpec, folder: Path, family: FamilySpec, width: int, seed: int
) -> list[SweepCell]:
    """The runs of one size and seed: that of the largest budget, and those that leave it."""
    budgets = sorted(spec.budgets, reverse=True)
    trunk, *branches = job = [
        _cell(spec, folder, family, width, budget, seed) for budget in budgets
    ]
    for cell in branches:
        cell.config.checkpoint.branch_of = trunk.config.log.run_dir
    # Its own too, for a larger budget that is added later.
    train = trunk.config.train
    kept = {cell.shared_steps for cell in branches} | {stable_steps(train, train.steps)}
    trunk.config.checkpoint.keep_steps = sorted(kept)
    return job


def _cell(
    spec: SweepSpec,
    folder: Path,
    family: FamilySpec,
    width: int,
    budget: float,
    seed: int,
    lr_multiplier: float = 1.0,
) -> SweepCell:
    dial, shaped = spec.dial, _shaped(spec, family, width)
    per_step = float(dial.batch_size * spec.seq_len)
    if spec.kind == "isoflop":
        per_step *= FORWARD_AND_BACKWARD * outline(shaped.model).flops_per_token(spec.seq_len)
    batch, steps = dial.batch_size, round(budget / per_step)
    if steps < 10:
        raise UserError(
            f"family {family.name} of width {width} has {steps} steps of {batch} sequences on the "
            f"budget {budget:g}; expected at least 10, with a larger budget or smaller batch"
        )
    train = shaped.train
    train.steps, train.global_batch_size, train.seed = steps, batch, seed
    train.micro_batch_size = min(train.micro_batch_size, batch)
    train.lr = lr_multiplier * (family.lr or dial.lr)
    train.lr *= (dial.base_width / width) ** dial.lr_power
    train.schedule, train.decay_ratio = "wsd", dial.decay_ratio
    train.warmup_steps = max(1, round(dial.warmup_ratio * min(spec.budgets) / per_step))
    shaped.eval.every_steps = shaped.eval.every_steps if "eval" in spec.set else 0
    cell = SweepCell(
        seed=seed,
        config=shaped,
        folder=folder,
        family=family.name,
        width=width,
        count=spec.count,
        lr_multiplier=lr_multiplier,
    )
    shaped.log.run_dir = str(folder / cell.name)
    return cell


def _shaped(spec: SweepSpec, family: FamilySpec, width: int) -> RunConfig:
    """A config of this size, whose steps and learning rate are still to come."""
    dial = spec.dial
    heads = width // dial.head_channels
    model = {
        "block": family.block,
        "d_model": width,
        "n_layers": max(2, round(width / dial.width_per_layer)),
        "vocab_size": spec.vocab_size,
        "max_seq_len": spec.seq_len,
        "dropout": 0.0,
        "gam": {"n_slots": width},
        "memory": {"kind": family.memory, "n_heads": heads, "n_slots": max(16, width // 4)},
        "attention": {"n_heads": heads},
    }
    config = {
        "model": model,
        "data": {"sets": [{"path": spec.data}], "seq_len": spec.seq_len},
        "train": {"steps": 1, "warmup_steps": 0},
    }
    for name, values in spec.set.items():
        config[name] = config.get(name, {}) | values
    return from_dict(RunConfig, config)
