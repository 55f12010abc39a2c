"""A cell of a sweep: where it branches off, its row of the collected CSV, what is kept of it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gam_scale.checkpoint.state import load_state
from gam_scale.config import load_config
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row, changed_setting
from gam_scale.experiment.deciding import deciding_settings, text_of
from gam_scale.files import write_json
from gam_scale.run.branch import newest_shared
from gam_scale.run.directory import RunDir
from gam_scale.run.figures import read_summary
from gam_scale.run.goodput import read_starts
from gam_scale.run.metrics_file import read_metrics
from gam_scale.strict import read_json, to_dict

CURVE_POINTS = 60
"""Most points of a run's curve: what a figure can show."""
CHECKED = ("model", "train")
"""Sections of a config in which a finished run must be as the sweep has it."""
FIGURES = ("val_loss", "val_late_loss", "val_bits_per_byte")
"""Of a run's summary, what a sweep needs."""


@dataclass
class KeptRun:
    """What a sweep needs of a finished run, whose folder may be on another machine."""

    cell: str
    text: str
    """What its data was when it was kept; see :func:`text_of`."""
    config: dict[str, Any]
    """Its :data:`CHECKED` sections; see :func:`deciding_settings`."""
    code_version: str
    summary: dict[str, float | None]
    """Its :data:`FIGURES`."""
    curve: list[tuple[int, float]]
    """Tokens and training loss."""


@dataclass(frozen=True, kw_only=True)
class SweepCell(Cell):
    """One run of a sweep; its run directory lies in the sweep's folder."""

    family: str
    width: int
    flops_budget: float | None
    """Where the sweep's file says FLOPs; those of whole steps are about as many."""
    count: str
    """What its parameters are: ``count`` of the sweep's file."""
    lr_multiplier: float = 1.0
    other_context: bool = False
    """Whether its texts have another length than the grid's."""
    kept: KeptRun | None = None
    """Of a run that is finished, and not here."""

    @property
    def name(self) -> str:
        """Of its folder: what differs between cells."""
        name = f"{self.family}-d{self.width}-t{self.tokens}-s{self.seed}"
        if self.other_context:
            name += f"-c{self.config.data.seq_len}"
        return name if self.lr_multiplier == 1 else f"{name}-lr{self.lr_multiplier:g}"

    @property
    def is_here(self) -> bool:
        """Whether its run has finished, in its folder."""
        return RunDir(self.run_dir).summary.exists()

    @property
    def of_the_grid(self) -> bool:
        """Whether a law may be fitted to it: no other learning rate, no other length of texts."""
        return self.lr_multiplier == 1 and not self.other_context

    @property
    def params(self) -> int:
        """As ``count`` says."""
        model, total = self.model, self.model.n_parameters()
        if model.position is not None:
            total -= model.position.weight.numel()
        if model.head is not None:  # the embedding is looked up, at no FLOPs
            total -= model.embedding.weight.numel()
        return total - (self.model.head_weight.numel() if self.count == "blocks" else 0)

    def write_config(self) -> Path:
        """The config as a file that tools/pretrain.py takes, checked as a whole.

        It branches off the finished run of the same settings that shares most steps with it; where
        there is none, off its trunk if that is still to come. So a budget that is added later goes
        on from what is there, be it above or below the others.
        """
        path, checkpoint = self.config_path, self.config.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        trunk = checkpoint.branch_of
        if trunk and (Path(trunk) / "summary.json").exists():
            trunk = ""
        checkpoint = replace(checkpoint, branch_of=self._finished_trunk() or trunk)
        write_json(path, to_dict(replace(self.config, checkpoint=checkpoint)))
        load_config(path)
        return path

    def _finished_trunk(self) -> str:
        """The finished run of other steps that kept the newest state that this one shares."""
        newest, trunk = -1, ""
        same_but_tokens = self.name.replace(f"-t{self.tokens}-", "-t*-")
        for folder in self.folder.glob(same_but_tokens):
            run = RunDir(folder)
            if folder == self.run_dir or not run.summary.exists() or run.difference(self.config):
                continue
            shared = newest_shared(run, self.config)
            if shared is not None and (step := load_state(shared).step) > newest:
                newest, trunk = step, str(folder)
        return trunk

    def row(self) -> Row | None:
        """Its row of the collected CSV; None while it is not finished.

        Raises:
            UserError: the run was made with other settings than the sweep's now.
        """
        summary, train = self._summary(), self.config.train
        if summary is None:
            return None
        return {
            "params": self.params,
            "tokens": self.tokens,
            "loss": summary.get("val_loss"),
            "flops": self.flops,
            "family": self.family,
            "seed": self.seed,
            # Budgets of one size and seed share weights, data and, as branches, most steps.
            "run": f"{self.family}-d{self.width}-s{self.seed}",
            "all_params": self.model.n_parameters(),
            "width": self.width,
            "layers": self.config.model.n_layers,
            "flops_budget": self.flops_budget,
            "lr": train.lr,
            "lr_multiplier": self.lr_multiplier,
            "batch": train.global_batch_size,
            "steps": train.steps,
            "warmup_steps": train.warmup_steps,
            "seq_len": self.config.data.seq_len,
            "late_loss": summary.get("val_late_loss"),
            "bits_per_byte": summary.get("val_bits_per_byte"),
            "code_version": summary.get("code_version", ""),
        }

    def curve(self) -> list[tuple[int, float]]:
        """Of the finished run, tokens and training loss.

        A branch's begins where it left its trunk, whose lines its metrics begin with.
        """
        if self.kept:
            return self.kept.curve
        run = RunDir(self.run_dir)
        per_step = self.tokens / self.config.train.steps
        began = next((start.step for start in read_starts(run.starts)), 0)
        lines = [line for line in read_metrics(run.metrics) if line["step"] >= began]
        lines = [line for line in lines if line.get("loss") is not None]
        stride = -(-len(lines) // CURVE_POINTS)
        shown = [line for i, line in enumerate(lines) if (len(lines) - 1 - i) % max(1, stride) == 0]
        return [(round(line["step"] * per_step), round(line["loss"], 5)) for line in shown]

    def to_keep(self) -> KeptRun:
        """What to keep of the run that has finished here."""
        summary = self._summary()
        assert summary is not None, f"{self.name} is not finished"
        settings = deciding_settings(self.config)
        return KeptRun(
            cell=self.name,
            text=text_of(self.config),
            config={name: settings[name] for name in CHECKED if name in settings},
            code_version=summary.get("code_version", ""),
            summary={name: summary.get(name) for name in FIGURES},
            curve=self.curve(),
        )

    def _summary(self) -> dict[str, Any] | None:
        """Of its run, or as it was kept, the settings checked; None while it is not finished."""
        if self.kept:
            saved, what = self.kept.config, f"the kept run {self.name}"
            summary = self.kept.summary | {"code_version": self.kept.code_version}
        elif self.is_here:
            run = RunDir(self.run_dir)
            saved, what, summary = read_json(run.config), str(run.path), read_summary(run.summary)
        else:
            return None
        if key := changed_setting(saved, self.config, CHECKED):
            raise UserError(
                f"{what} was trained with another {key} than the sweep has now; expected the "
                "same settings, or another --out (and --to)"
            )
        return summary
