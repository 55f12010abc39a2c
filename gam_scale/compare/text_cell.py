"""A cell of a text comparison: one model trained on text, to tune its rate or in full."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gam_scale.compare.solve import Sized
from gam_scale.config import RunConfig
from gam_scale.config.rules import check
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Cell, Row
from gam_scale.experiment.code_version import code_version
from gam_scale.experiment.deciding import deciding_settings, text_of
from gam_scale.experiment.kept import keep_row_with_config, mean_curve
from gam_scale.experiment.results import kept_row, result_path
from gam_scale.hyperparameters import with_chosen, with_settings
from gam_scale.run.directory import RunDir
from gam_scale.run.divergence import figures_of_diverged
from gam_scale.run.figures import read_summary
from gam_scale.run.metrics_file import read_metrics
from gam_scale.strict import AUTO, is_auto

Stage = Literal["tune", "full"]
NEEDED = ("tokens", "tokens_per_s")
"""Keys of a run's summary that the page shows, and whose figures every finished run has."""
VALIDATED = ("val_loss", "val_bits_per_byte")
"""Further such keys, which are null for a run that diverged."""


@dataclass(frozen=True, kw_only=True)
class TextCell(Cell):
    """One run of a text comparison."""

    model_name: str
    stage: Stage
    sized: Sized
    rate: float
    """As in the comparison's file: a learning rate, or a multiple of the automatic one."""

    @property
    def name(self) -> str:
        """See :attr:`Cell.name`."""
        return f"{self.model_name}-{self.stage}-lr{self.config.train.lr:g}-s{self.seed}"

    @property
    def settings_free_to_differ(self) -> tuple[str, ...]:
        """See :attr:`Cell.settings_free_to_differ`.

        Tuning uses whatever precision is fast on a machine.
        """
        return ("train.precision",) if self.stage == "tune" else ()

    def write_config(self) -> Path:
        """See :meth:`Cell.write_config`.

        Raises:
            UserError: the folder has this cell with other settings.
        """
        wanted = "the same settings, or another --out (and --to)"
        return self.keep_config("the comparison has now", wanted)

    def row(self) -> Row | None:
        """See :meth:`Cell.row`; the row is kept beside the run, which may then be removed."""
        kept = kept_row(self.folder, self.name)
        if kept is None and (figures := self._figures()) is not None:
            row = self._row(figures)
            kept = keep_row_with_config(self.folder, self.name, row, deciding_settings(self.config))
        if kept is not None:
            self.write_config()
            if kept.get("text") != (text := text_of(self.config)):
                raise UserError(
                    f"{result_path(self.folder, self.name)} was trained on the text "
                    f"{kept.get('text')} and {self.config.data.sets[0].path} is {text}; expected "
                    "the same text and tokenizer, or another --out (and --to)"
                )
        return kept

    def _figures(self) -> dict[str, Any] | None:
        """Return the figures of a run that has ended or diverged; None: it goes on."""
        run = RunDir(self.run_dir)
        if run.summary.exists():
            return read_summary(run.summary, NEEDED, VALIDATED)
        return figures_of_diverged(run)

    def _row(self, summary: dict[str, Any]) -> Row:
        speed = summary["tokens_per_s"]
        lines = read_metrics(self.run_dir / "metrics.jsonl")
        learned = [(x["tokens"], x["loss"]) for x in lines if x.get("loss") is not None]
        checked = [(x["tokens"], x["val_loss"]) for x in lines if x.get("val_loss") is not None]
        seq_len = self.config.data.seq_len
        return {
            "model": self.model_name,
            "stage": self.stage,
            "lr": self.config.train.lr,
            "rate": self.rate,
            "seed": self.seed,
            "parameters": self.sized.parameters,
            "all_parameters": self.model.n_parameters(),
            "memory": self.sized.memory,
            "state": self.sized.state.at(seq_len),
            "ffn_width": self.sized.width,
            "layers": list(self.config.model.layer_kinds()),
            "text": text_of(self.config),
            "seq_len": seq_len,
            "tokens": summary["tokens"],
            "val_loss": summary["val_loss"],
            "val_bits_per_byte": summary["val_bits_per_byte"],
            "tokens_per_s": None if speed is None else round(speed),
            "train_curve": mean_curve(learned),
            "val_curve": mean_curve(checked),
            "code_version": code_version(),
        }


@dataclass(frozen=True)
class Budget:
    """Purpose and length of a run."""

    stage: Stage
    tokens: float
    warmup: float
    """Share of the steps that warm up."""
    times_auto: bool = False
    """Whether rates are multiples of what ``auto`` chooses for the model and this budget."""


def text_cell(
    folder: Path,
    name: str,
    size: Sized,
    config: RunConfig,
    budget: Budget,
    rate: float,
    seed: int,
) -> TextCell:
    """Return a run of a model; ``config`` has the settings that all its runs share.

    Raises:
        UserError: settings do not go together, or the budget is less than two steps.
    """
    train = replace(config.train, seed=seed)
    train.steps = round(budget.tokens / (train.global_batch_size * config.data.seq_len))
    if train.steps < 2:
        raise UserError(
            f"{budget.tokens:g} tokens are {train.steps} steps of {train.global_batch_size} "
            f"sequences; expected more tokens"
        )
    if not is_auto(train.warmup_steps):
        train.warmup_steps = max(1, round(budget.warmup * train.steps))
    train.micro_batch_size = min(train.micro_batch_size, train.global_batch_size)
    train = with_settings(train, {"lr": AUTO if budget.times_auto else rate})
    config = with_chosen(replace(config, model=size.config, train=train))
    if budget.times_auto:
        chosen = config.train.lr
        config.train.lr = float(f"{rate * chosen:.3g}")
    cell = TextCell(
        seed=seed,
        config=config,
        folder=folder,
        model_name=name,
        stage=budget.stage,
        sized=size,
        rate=rate,
    )
    config.log = replace(config.log, run_dir=str(folder / "runs" / cell.name))
    check(config)
    return cell


def best(cells: Sequence[tuple[TextCell, Row]]) -> tuple[TextCell, Row]:
    """Return the finished cell with the lowest validation loss, and its row.

    If all diverged, the one with the lowest rate, below which a further rate is then tried.
    """
    return min(cells, key=lambda each: (final_loss(each[1]), each[0].rate))


def final_loss(row: Row) -> float:
    """Return the validation loss by which a run is ordered; one that diverged comes last."""
    return or_inf(row["val_loss"])


def or_inf(loss: float | None) -> float:
    """Return ``loss``, or infinity for None and NaN, the losses of a run that diverged."""
    return math.inf if loss is None or math.isnan(loss) else loss
