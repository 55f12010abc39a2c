"""A sweep: families, sizes, budgets and seeds from one small JSON file, each cell a run's config.

One dial, the width d, sets a size by these rules:

* depth: d / ``width_per_layer``, at least 2: width and depth grow together.
* heads of ``head_channels`` channels; a static bank of d rows, written slots of d / 4, so that
  memories grow with the model.
* learning rate: ``lr``, the family's own where it has one, at ``base_width``, times base_width / d
  to the power ``lr_power`` (1 by arXiv 2203.03466, table 3: Adam's rate for hidden matrices goes
  with 1 / width; where the embedding is most of the model, whose rate does not, less is better).
* batch: ``batch_size`` sequences, at every size and budget.

The schedule is warmup-stable-decay, so that budgets share what they can (arXiv 2405.18392): the
run of the largest budget is the trunk, and smaller ones branch off it where their own decay begins,
from the checkpoint that it keeps there. Batch, learning rate and warm-up (a share of the smallest
budget's steps) are therefore one for all budgets of a size, and a branch is, bit for bit, the run
of its own that it stands for.

``lr_multipliers`` asks how much the learning rate matters: the smallest width at the smallest
budget, once more at each multiple.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from gam_scale.checkpoint.store import load_state
from gam_scale.config import MemoryKind, RunConfig, load_config
from gam_scale.errors import UserError
from gam_scale.files import write_json
from gam_scale.former import in_todays_terms
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.run.branch import newest_shared
from gam_scale.run.directory import RunDir
from gam_scale.run.figures import read_summary
from gam_scale.schedule import stable_steps
from gam_scale.strict import from_dict, option, read_json, section, to_dict

FORWARD_AND_BACKWARD = 3.0  # a training step over a forward pass


@dataclass
class FamilySpec:
    """One kind of model."""

    name: str = option("", "the family column of the collected CSV, and a folder's name")
    block: Literal["gam", "attention", "mamba"] = option("gam", "model.block")
    memory: MemoryKind = option("static", "model.memory.kind, of gam blocks")
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


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    family: str
    width: int
    seed: int
    config: RunConfig
    count: str
    lr_multiplier: float = 1.0

    @property
    def name(self) -> str:
        """Of its folder: what differs between cells."""
        name = f"{self.family}-d{self.width}-t{self.tokens}-s{self.seed}"
        return name if self.lr_multiplier == 1 else f"{name}-lr{self.lr_multiplier:g}"

    @property
    def branches(self) -> bool:
        """Whether it goes on from another run's checkpoint."""
        return bool(self.config.checkpoint.branch_of)

    @property
    def shared_steps(self) -> int:
        """Steps that its trunk has done for it."""
        return stable_steps(self.config.train, self.config.train.steps) if self.branches else 0

    @property
    def own_flops(self) -> float:
        """Of ``flops``, what is left to do once the trunk is there."""
        return self.flops * (1 - self.shared_steps / self.config.train.steps)

    @property
    def tokens(self) -> int:
        """Trained on, whole steps."""
        train = self.config.train
        return train.steps * train.global_batch_size * self.config.data.seq_len

    @cached_property
    def model(self) -> LanguageModel:
        """Without weights."""
        return outline(self.config.model)

    @cached_property
    def params(self) -> int:
        """As ``count`` says."""
        return _params(self.model, self.count)

    @cached_property
    def flops(self) -> float:
        """Of training: three forward passes a token, counted from the model, head included."""
        forward = self.model.flops_per_token(self.config.data.seq_len)
        return FORWARD_AND_BACKWARD * forward * self.tokens


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


def cells(spec: SweepSpec, folder: Path) -> list[Cell]:
    """Every run of the sweep, the cheapest first, with run directories below ``folder``."""
    return sorted(chain(*jobs(spec, folder)), key=lambda cell: cell.flops)


def jobs(spec: SweepSpec, folder: Path) -> list[list[Cell]]:
    """The runs as they can be done: a trunk and then its branches; the cheapest job first."""
    found = [
        [_cell(spec, folder, family, width, budget, seed) for budget in sorted(spec.budgets)[::-1]]
        for family in spec.families
        for width in spec.widths
        for seed in spec.seeds
    ]
    for trunk, *rest in found:
        for cell in rest:
            cell.config.checkpoint.branch_of = trunk.config.log.run_dir
        # Its own too, for a larger budget that is added later.
        train = trunk.config.train
        steps = {cell.shared_steps for cell in rest} | {stable_steps(train, train.steps)}
        trunk.config.checkpoint.keep_steps = sorted(steps)
    for family in spec.families:
        for factor in spec.lr_multipliers:
            width, budget, seed = min(spec.widths), min(spec.budgets), spec.seeds[0]
            found.append([_cell(spec, folder, family, width, budget, seed, factor)])
    return sorted(found, key=lambda job: sum(cell.own_flops for cell in job))


def _cell(
    spec: SweepSpec,
    folder: Path,
    family: FamilySpec,
    width: int,
    budget: float,
    seed: int,
    lr_multiplier: float = 1.0,
) -> Cell:
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
    shaped: RunConfig = from_dict(RunConfig, config)
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
    cell = Cell(family.name, width, seed, shaped, spec.count, lr_multiplier)
    shaped.log.run_dir = str(folder / cell.name)
    return cell


def _params(model: LanguageModel, count: str) -> int:
    total = model.n_parameters()
    if model.position is not None:
        total -= model.position.weight.numel()
    return total - (model.embedding.weight.numel() if count == "blocks" else 0)


def write_config(cell: Cell, folder: Path) -> Path:
    """The cell's config as a file that tools/pretrain.py takes, checked as a whole.

    It branches off the finished run of the same settings that shares most steps with it; where
    there is none, off its trunk if that is still to come. So a budget that is added later goes on
    from what is there, be it above or below the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, checkpoint = folder / f"{cell.name}.json", cell.config.checkpoint
    trunk = checkpoint.branch_of
    if trunk and (Path(trunk) / "summary.json").exists():
        trunk = ""
    checkpoint = replace(checkpoint, branch_of=_finished_trunk(cell) or trunk)
    config = replace(cell.config, checkpoint=checkpoint)
    write_json(path, to_dict(config))
    load_config(path)
    return path


def _finished_trunk(cell: Cell) -> str:
    """The finished run of other steps that kept the newest state that ``cell`` shares."""
    own = Path(cell.config.log.run_dir)
    best, found = -1, ""
    for folder in own.parent.glob(own.name.replace(f"-t{cell.tokens}-", "-t*-")):
        run = RunDir(folder)
        if folder == own or not run.summary.exists() or run.difference(cell.config):
            continue
        shared = newest_shared(run, cell.config)
        if shared is not None and (step := load_state(shared).step) > best:
            best, found = step, str(folder)
    return found


def result(cell: Cell) -> dict[str, Any] | None:
    """A finished cell's row of the collected CSV; None while it is not finished.

    Raises:
        UserError: the run was made with other settings than the sweep's now.
    """
    folder = Path(cell.config.log.run_dir)
    path = folder / "summary.json"
    if not path.exists():
        return None
    made = in_todays_terms(read_json(folder / "config.json"), cell.config)
    now = to_dict(cell.config)
    for name in ("model", "train"):
        for key, value in now[name].items():
            if made.get(name, {}).get(key, value) != value:
                raise UserError(
                    f"{folder} was trained with another {name}.{key} than the sweep has now; "
                    "expected the same settings, or another --out"
                )
    summary = read_summary(path)
    return {
        "params": cell.params,
        "tokens": cell.tokens,
        "loss": summary.get("val_loss"),
        "flops": cell.flops,
        "family": cell.family,
        "seed": cell.seed,
        # Budgets of one size and seed share weights, data and, as branches, most of their steps.
        "run": f"{cell.family}-d{cell.width}-s{cell.seed}",
        "all_params": cell.model.n_parameters(),
        "width": cell.width,
        "layers": cell.config.model.n_layers,
        "lr": cell.config.train.lr,
        "lr_multiplier": cell.lr_multiplier,
        "batch": cell.config.train.global_batch_size,
        "bits_per_byte": summary.get("val_bits_per_byte"),
        "code_version": summary.get("code_version", ""),
    }
