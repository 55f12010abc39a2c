"""A sweep: families, sizes, budgets and seeds from one small JSON file; each cell is a run.

One dial, the width d, sets a size by these rules:

* depth: d / ``width_per_layer``, at least ``min_layers``: width and depth grow together.
* heads of ``head_channels`` channels; a static bank of d slots; written memories of d / 4 slots, 16
  at least: memories grow with the model.
* learning rate: lr * (base_width / d) ** lr_power, with the ``lr`` of the family if it has one. A
  power of 1 is arXiv 2203.03466, table 3: Adam's rate for hidden matrices falls as 1 / width. The
  embedding's rate does not, so a smaller power suits models that are mostly embedding. A family
  with ``lrs``, rates tuned at two widths, follows the power law through both instead.
* batch: ``batch_size`` sequences, at every size and budget.

The schedule is warmup-stable-decay, so that budgets can share steps (arXiv 2405.18392). The run of
the largest budget is the trunk. Smaller ones branch off it where their own decay begins, from a
checkpoint that the trunk keeps there. All budgets of a size therefore have the same batch, learning
rate and warm-up (a share of the smallest budget's steps, with a floor), and a branch is, bit for
bit, the run that would have been trained alone.

Four kinds of further runs stand beside this grid. ``lr_multipliers`` varies the learning rate at
both ends: at the smallest width on the smallest budget, and at the largest width on the largest.
``repeat`` varies the seed. ``context`` varies the length of texts, with as many tokens in all and
in each step. ``beyond`` is for forecasts: runs on larger budgets, which no law is fitted to.
"""

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.experiment.cell import FORWARD_AND_BACKWARD
from gam_scale.experiment.grid import Grid
from gam_scale.model.lm import outline
from gam_scale.scaling.sweep_cell import SweepCell
from gam_scale.scaling.sweep_spec import FamilySpec, SweepSpec
from gam_scale.schedule import stable_steps
from gam_scale.strict import from_dict, merged

LATE = 3 / 4
"""Share of a text at which its late part begins; the loss there is measured to compare contexts."""


def sweep_grid(spec: SweepSpec, folder: Path) -> Grid[SweepCell]:
    """Return the sweep's runs, in ``folder``; a job is a trunk with its branches, cheap jobs first.

    Raises:
        UserError: a size cannot be trained on any of its budgets.
    """
    jobs = []
    for family in spec.families:
        for width, seed in product(spec.widths, spec.seeds):
            jobs.append(link_branches(_on_budgets(spec, folder, family, width, seed)))
        for seed in spec.repeat.seeds:
            again = _on_budgets(spec, folder, family, spec.repeat.width, seed, spec.repeat.up_to)
            jobs.append(link_branches(again))
        further = (*_other_rates(spec, folder, family), *_other_contexts(spec, folder, family))
        jobs += [[cell] for cell in further]
    jobs += [[cell] for cell in _beyond(spec, folder)]
    return Grid(sorted(jobs, key=lambda job: sum(cell.own_flops for cell in job)))


def _on_budgets(
    spec: SweepSpec,
    folder: Path,
    family: FamilySpec,
    width: int,
    seed: int,
    up_to: float = 0.0,
    seq_len: int = 0,
) -> list[SweepCell]:
    """Return the runs of one size on the budgets that suit it, the largest first.

    ``up_to`` is the largest budget (0: of all budgets). For ``seq_len`` see :func:`_cell`.
    """
    least, most = spec.ratios or (0.0, math.inf)
    budgets = [budget for budget in spec.budgets if not up_to or budget <= up_to]
    steps = {budget: _steps(spec, family, width, budget) for budget in budgets}
    long = sorted((budget for budget in steps if steps[budget] >= spec.min_steps), reverse=True)
    cells = [_cell(spec, folder, family, width, budget, seed, seq_len) for budget in long]
    suited = [cell for cell in cells if least <= cell.tokens / cell.params <= most]
    if not suited:
        had = ", ".join(f"{cell.tokens / cell.params:.2g}" for cell in cells) or "no budget left"
        raise UserError(
            f"family {family.name} of width {width} has no budget of min_steps {spec.min_steps} "
            f"steps and ratios {spec.ratios}, but {had}; expected another width or budget"
        )
    return suited


def _steps(spec: SweepSpec, family: FamilySpec, width: int, budget: float) -> int:
    per_step = float(spec.dial.batch_size * spec.seq_len)
    if spec.kind == "isoflop":
        forward = outline(_shaped(spec, family, width, spec.seq_len).model)
        per_step *= FORWARD_AND_BACKWARD * forward.flops_per_token(spec.seq_len)
    return round(budget / per_step)


def link_branches(cells: list[SweepCell]) -> list[SweepCell]:
    """Make the first of ``cells``, one size and seed by falling budget, the trunk of the others."""
    trunk, *branches = cells
    trunk.config.checkpoint.branch_of = ""
    for cell in branches:
        cell.config.checkpoint.branch_of = trunk.config.log.run_dir
    # The trunk also keeps the step where its own decay begins, for a larger budget added later.
    train = trunk.config.train
    kept = {cell.shared_steps for cell in branches} | {stable_steps(train, train.steps)}
    trunk.config.checkpoint.keep_steps = sorted(kept)
    return cells


def _other_rates(spec: SweepSpec, folder: Path, family: FamilySpec) -> list[SweepCell]:
    """Return the runs at both ends of the grid at multiples of their learning rates."""
    ends = {max(spec.widths): 0} | {min(spec.widths): -1}  # a single end if there is one width
    cells = []
    for multiplier, (width, budget) in product(spec.lr_multipliers, ends.items()):
        cell = _on_budgets(spec, folder, family, width, spec.seeds[0])[budget]
        cell.config.train.lr *= multiplier
        cells.append(_renamed(replace(cell, lr_multiplier=multiplier)))
    return cells


def _other_contexts(spec: SweepSpec, folder: Path, family: FamilySpec) -> list[SweepCell]:
    """Return runs on texts of other lengths, with the grid's tokens, in all and in each step."""
    context, seed = spec.context, spec.seeds[0]
    cells = [
        _on_budgets(spec, folder, family, context.width, seed, context.up_to, seq_len)[0]
        for seq_len in context.seq_lens
    ]
    return [_renamed(replace(cell, other_context=True)) for cell in cells]


def _beyond(spec: SweepSpec, folder: Path) -> list[SweepCell]:
    """Return the runs beyond the grid, each with the warm-up and learning rate of its width."""
    families = {family.name: family for family in spec.families}
    return [
        replace(
            _cell(spec, folder, families[name], each.width, each.budget, spec.seeds[0]),
            beyond=True,
        )
        for each in spec.beyond
        for name in each.families
    ]


def _cell(
    spec: SweepSpec,
    folder: Path,
    family: FamilySpec,
    width: int,
    budget: float,
    seed: int,
    seq_len: int = 0,
) -> SweepCell:
    """Return one run; a ``seq_len`` above 0 replaces the sweep's, and tokens stay as many."""
    dial, shaped = spec.dial, _shaped(spec, family, width, seq_len or spec.seq_len)
    steps = _steps(spec, family, width, budget)
    batch = dial.batch_size * spec.seq_len // shaped.data.seq_len
    if steps < 10:
        raise UserError(
            f"family {family.name} of width {width} has {steps} steps of {batch} sequences on the "
            f"budget {budget:g}; expected at least 10, with a larger budget or smaller batch"
        )
    train = shaped.train
    train.steps, train.global_batch_size, train.seed = steps, batch, seed
    train.micro_batch_size = min(train.micro_batch_size, batch)
    train.lr = peak_lr(spec, family, width)
    train.schedule, train.decay_ratio = "wsd", dial.decay_ratio
    warmup = round(dial.warmup_ratio * _steps(spec, family, width, min(spec.budgets)))
    train.warmup_steps = max(1, dial.warmup_steps, warmup)
    if train.warmup_steps > (1 - dial.decay_ratio) * steps:
        raise UserError(
            f"family {family.name} of width {width} has {steps} steps on the budget {budget:g}, "
            f"{train.warmup_steps} of which warm up and {dial.decay_ratio:.0%} decay; expected "
            "a larger budget, a smaller batch or fewer dial.warmup_steps"
        )
    shaped.eval.every_steps = shaped.eval.every_steps if "eval" in spec.set else 0
    cell = SweepCell(
        seed=seed,
        config=shaped,
        folder=folder,
        family=family.name,
        width=width,
        flops_budget=budget if spec.kind == "isoflop" else None,
        count=spec.count,
    )
    return _renamed(cell)


def _renamed(cell: SweepCell) -> SweepCell:
    """Set the cell's run directory to a folder of the cell's name, and return the cell."""
    cell.config.log.run_dir = str(cell.folder / cell.name)
    return cell


def peak_lr(spec: SweepSpec, family: FamilySpec, width: int) -> float:
    """Return the peak learning rate of a family at a width."""
    if not family.lrs:
        base = family.lr or spec.dial.lr
        return base * (spec.dial.base_width / width) ** spec.dial.lr_power
    (narrow, at_narrow), (wide, at_wide) = sorted((int(w), lr) for w, lr in family.lrs.items())
    power = math.log(at_wide / at_narrow) / math.log(wide / narrow)
    return at_narrow * (width / narrow) ** power


def _shaped(spec: SweepSpec, family: FamilySpec, width: int, seq_len: int) -> RunConfig:
    """Return a config of this size, without its steps and learning rate."""
    dial = spec.dial
    heads = width // dial.head_channels
    model = {
        "block": family.block,
        "d_model": width,
        "n_layers": max(dial.min_layers, round(width / dial.width_per_layer)),
        "vocab_size": spec.vocab_size,
        "max_seq_len": seq_len,
        "dropout": 0.0,
        "gam": {"n_slots": width},
        "memory": {"kind": family.memory, "n_heads": heads, "n_slots": max(16, width // 4)},
        "attention": {"n_heads": heads},
    }
    config = {
        "model": model,
        "data": {"sets": [{"path": spec.data}], "seq_len": seq_len},
        "train": {"steps": 1, "warmup_steps": 0},
        "eval": {"late_from": round(LATE * seq_len) if spec.context.seq_lens else 0},
    }
    return from_dict(RunConfig, merged(merged(config, spec.set), family.set))
