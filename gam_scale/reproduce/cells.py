"""The runs behind tables 1 and 3: models, set-ups, seeds, and the rule that scales them down.

At scale 1 a run of the published set-up has the model and training of its file in configs/paper/.
At scale F:

* Width, static slots, heads and sequences per step are F times the paper's (the width is a multiple
  of 64, the channels of a head).
* Optimizer steps and warm-up steps are F times the paper's too, so a run sees F^2 times the tokens.
* The learning rate is 3e-4 times 512 over the width (arXiv 2203.03466, table 3: Adam's rate for
  hidden matrices is proportional to 1 / width). Bare Mamba blocks keep the paper's rate: without
  norms, their values overflow at a larger one (at scale 1/8 and 2.4e-3 after 35 steps).
* Depth, kernel, tokens of context, vocabulary, dropout and the rest stay the paper's, so the
  receptive field stays 13 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gam_scale.config import RunConfig, load_config
from gam_scale.config.rules import check
from gam_scale.data.manifest import Manifest, read_validated
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row
from gam_scale.experiment.code_version import code_version
from gam_scale.experiment.grid import Grid
from gam_scale.experiment.results import keep_row, kept_row
from gam_scale.run.figures import read_summary
from gam_scale.run.metrics_file import read_metrics
from gam_scale.strict import apply_overrides, from_dict, to_dict

HEAD_CHANNELS = 64
LEAST_SCALE = 0.01
LAST_SHARE = 0.1  # share of the steps, at the end, whose mean loss is the training loss
NEEDED = ("parameters", "tokens", "flops_per_token", "tokens_per_s", "device")
"""Keys of a run's summary that the page needs, and whose figures every finished run has."""
VALIDATED = ("val_loss", "val_perplexity", "val_bits_per_byte")
"""Further such keys, which are null for a run that diverged."""

# Handicaps of the published set-ups are removed one by one; first that of the position embeddings,
# which all models share.
_SETUPS = {
    "gam": {
        "paper": (),
        "scaled": ("model.init=scaled",),
        "unhandicapped": ("model.init=scaled", "model.memory.kind=delta"),
    },
    "transformer": {"paper": (), "scaled": ("model.init=scaled",)},
    "mamba": {
        "paper": (),
        "scaled": ("model.init=scaled",),
        "unhandicapped": ("model.init=scaled", "model.mamba.stack=residual"),
    },
}
_ABLATIONS = {
    "gam-global": ("model.gam.fusion=sum", "model.gam.paths=global"),
    "gam-sum": ("model.gam.fusion=sum",),
    "gam-local": ("model.gam.fusion=sum", "model.gam.paths=local"),
}
DATASETS = ("wikitext2", "tinystories")
MODELS_1 = tuple(_SETUPS)
MODELS_3 = ("gam", *_ABLATIONS)
BLOCKS = {"gam": "gam", "transformer": "attention", "mamba": "mamba"}


@dataclass(frozen=True)
class DataSet:
    """A prepared data set that stands for one of the paper's two."""

    name: str
    path: str
    manifest: Manifest

    @classmethod
    def read(cls, name: str, path: str) -> "DataSet":
        """Return the data set at ``path``, with its manifest.

        Raises:
            UserError: ``path`` is not a prepared data set with a validation split.
        """
        return cls(name, path, read_validated(path))

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return self.manifest.splits["train"].tokens


@dataclass(frozen=True, kw_only=True)
class PaperCell(Cell):
    """One run: a model on a data set, in one set-up, from one seed."""

    dataset: str
    model_name: str
    setup: str

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.dataset}-{self.model_name}-{self.setup}-s{self.seed}"

    def write_config(self) -> Path:
        """Write the config file for tools/pretrain.py, unless it is there, and return its path.

        Raises:
            UserError: the folder has this cell with other settings.
        """
        wanted = "the same scale and settings, or another --out"
        return self.keep_config("this command makes", wanted)

    def row(self) -> Row | None:
        """Return the run's row of runs.csv and keep it in ``results``; None until it has finished.

        Raises:
            UserError: the run was made with other settings than the cell's.
        """
        kept, summary = kept_row(self.folder, self.name), self.run_dir / "summary.json"
        if kept is None and not summary.exists():
            return None
        self.write_config()
        if kept is None:
            row = self._row(read_summary(summary, NEEDED, VALIDATED))
            kept = keep_row(self.folder, self.name, row)
        return kept

    def _row(self, summary: dict[str, Any]) -> Row:
        config = self.config
        tokens_a_step = config.train.global_batch_size * config.data.seq_len
        return {
            "dataset": self.dataset,
            "model": self.model_name,
            "setup": self.setup,
            "seed": self.seed,
            "params": summary["parameters"],
            "tokens": summary["tokens"],
            "train_loss": _train_loss(self.run_dir),
            "val_loss": summary["val_loss"],
            "val_perplexity": summary["val_perplexity"],
            "val_bits_per_byte": summary["val_bits_per_byte"],
            "tokens_per_s": summary["tokens_per_s"],
            "epoch_tokens": self.epoch_tokens,
            "device": summary["device"],
            "width": config.model.d_model,
            "steps": round(summary["tokens"] / tokens_a_step),
            "batch": config.train.global_batch_size,
            "lr": config.train.lr,
            "warmup_steps": config.train.warmup_steps,
            "flops": summary["flops_per_token"] * summary["tokens"],
            "code_version": code_version(),
        }


def scaled(config: RunConfig, scale: float) -> RunConfig:
    """Scale ``config`` down in place by the rule above and return it; scale 1 changes nothing."""
    model, train = config.model, config.train
    full = model.d_model
    heads = max(1, round(scale * full / HEAD_CHANNELS))
    model.d_model = HEAD_CHANNELS * heads
    model.gam.n_slots = max(1, round(model.gam.n_slots * model.d_model / full))
    model.attention.n_heads = heads
    if model.memory.kind != "static":
        model.memory.n_heads = heads
    batch = max(1, round(scale * train.global_batch_size))
    # Smaller batches give an epoch more steps, but the run is to have ``scale`` times the steps.
    train.epochs *= scale * batch / train.global_batch_size
    train.global_batch_size = batch
    train.micro_batch_size = min(train.micro_batch_size, batch)
    train.warmup_steps = max(1, round(scale * train.warmup_steps))
    if "mamba" not in model.layer_kinds() or model.mamba.stack == "residual":
        train.lr *= full / model.d_model
    return config


def paper_grid(
    tables: Sequence[int],
    datasets: Sequence[DataSet],
    seeds: Sequence[int],
    scale: float,
    configs: Path,
    folder: Path,
    overrides: Sequence[str] = (),
) -> Grid[PaperCell]:
    """Return the runs of tables 1 and 3: all runs of a seed before the next seed, cheap ones first.

    Args:
        tables: the tables wanted; a run that both share is trained once.
        datasets: the data sets; table 3 uses WikiText-2 alone.
        seeds: ``train.seed`` of repeated runs.
        scale: 1 is the paper's size; at least :data:`LEAST_SCALE`.
        configs: the folder configs/paper.
        folder: folder of the experiment; run directories are in its ``runs``.
        overrides: further settings of every run, ``section.key=value``.

    Raises:
        UserError: a seed or a setting cannot work.
    """
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds is {list(seeds)}; expected different numbers from 0 on")
    columns = {
        (data.name, model, setup): (data, changes)
        for table in tables
        for data in datasets
        for model, setup, changes in _columns(table)
        if table == 1 or data.name == "wikitext2"
    }
    ordered: list[PaperCell] = []
    for seed in seeds:
        cells = [
            _cell(data, model, setup, seed, scale, configs, folder, [*changes, *overrides])
            for (_, model, setup), (data, changes) in columns.items()
        ]
        ordered += sorted(cells, key=lambda cell: cell.flops)
    return Grid([[cell] for cell in ordered])


def _columns(table: int) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return model, set-up and the settings that make it, for each column of a table."""
    if table == 1:
        return [(m, s, changes) for m, setups in _SETUPS.items() for s, changes in setups.items()]
    ablations = {"gam": (), **_ABLATIONS}
    return [
        (model, setup, (*_SETUPS["gam"][setup], *changes))
        for model, changes in ablations.items()
        for setup in ("paper", "scaled")
    ]


def _cell(
    data: DataSet,
    model: str,
    setup: str,
    seed: int,
    scale: float,
    configs: Path,
    folder: Path,
    changes: Sequence[str],
) -> PaperCell:
    block = BLOCKS[model.split("-")[0]]
    config = load_config(configs / f"{data.name}_{block}.json")
    # The rule needs the model's final settings. All changes are applied again after the rule, so
    # that they win over its values.
    shape = [c for c in changes if c.startswith("model.")]
    config = from_dict(RunConfig, apply_overrides(to_dict(config), shape))
    config = scaled(config, scale)
    config.data.sets[0].path = data.path
    config.train.seed = seed
    config.parallel.engine, config.parallel.preflight = "torch", False
    config.eval.every_steps, config.eval.max_tokens = 0, 0  # the whole split, once
    config.log.wandb, config.log.tensorboard = "off", False
    config = from_dict(RunConfig, apply_overrides(to_dict(config), changes))
    config.model.vocab_size = config.model.vocab_size or data.manifest.tokenizer.vocab_size
    cell = PaperCell(
        seed=seed,
        config=config,
        folder=folder,
        epoch_tokens=data.tokens,
        dataset=data.name,
        model_name=model,
        setup=setup,
    )
    config.log.run_dir = str(folder / "runs" / cell.name)
    check(config)
    return cell


def _train_loss(folder: Path) -> float:
    """Return the mean loss of the logged lines whose step is in the last tenth of the steps."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line.get("loss")]
    if not lines:
        raise UserError(f"{folder / 'metrics.jsonl'} has no losses; expected a trained run's")
    last = lines[-1]["step"]
    late = [line["loss"] for line in lines if line["step"] > (1 - LAST_SHARE) * last]
    return sum(late) / len(late)
