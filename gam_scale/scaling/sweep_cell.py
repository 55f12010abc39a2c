"""A cell of a sweep: its run, where that branches off, its CSV row, and what is kept of it."""

from dataclasses import dataclass, field, replace
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
from gam_scale.scaling.sweep_origin import here_text, note_origin, read_origin, times
from gam_scale.strict import read_json, to_dict

CURVE_POINTS = 60
"""Most points of a run's curve, as many as a figure can show."""
CHECKED = ("model", "data", "train", "eval")
"""Sections of a config in which a finished run must agree with the sweep, but for :data:`FREE` and
the text's path. Kept runs of an earlier version have no data and eval, which are not compared."""
FREE = ("data.cache_dir", "data.cache_limit_gb", "eval.every_steps")
"""Settings of these sections that do not decide the loss at the end."""
FIGURES = ("val_loss", "val_late_loss", "val_bits_per_byte")
"""Keys of a run's summary that a sweep needs."""


@dataclass
class KeptRun:
    """What a sweep needs of a finished run, whose folder may be on another machine."""

    cell: str
    text: str
    """Hashes of the run's data when the run was kept; see :func:`text_of`."""
    config: dict[str, Any]
    """The run's :data:`CHECKED` sections without defaults; see :func:`deciding_settings`."""
    code_version: str
    """Of the code that trained the run; several if it was continued with another."""
    summary: dict[str, float | None]
    """The run's :data:`FIGURES`."""
    curve: list[tuple[int, float]]
    """Tokens and training loss of each point."""
    times: list[str] = field(default_factory=list)
    """When the run began and ended; see :func:`times`. Empty: not known."""


@dataclass(frozen=True, kw_only=True)
class SweepCell(Cell):
    """One run of a sweep; its run directory lies in the sweep's folder."""

    family: str
    width: int
    flops_budget: float | None
    """Planned FLOPs, which whole steps nearly spend; None if the sweep's budgets are in tokens."""
    count: str
    """Which parameters count: ``count`` of the sweep file."""
    lr_multiplier: float = 1.0
    other_context: bool = False
    """Whether the run's texts have another length than the grid's."""
    beyond: bool = False
    """Whether the run is on a larger budget than the grid's, to compare with a law's forecast."""
    kept: KeptRun | None = None
    """What is kept of the run, if it has finished and its folder is not here."""

    @property
    def name(self) -> str:
        """Name of the run's folder, made of the settings that differ between cells."""
        name = f"{self.family}-d{self.width}-t{self.tokens}-s{self.seed}"
        if self.other_context:
            name += f"-c{self.config.data.seq_len}"
        return name if self.lr_multiplier == 1 else f"{name}-lr{self.lr_multiplier:g}"

    @property
    def is_here(self) -> bool:
        """Whether the run has finished and its folder is here."""
        return RunDir(self.run_dir).summary.exists()

    @property
    def of_the_grid(self) -> bool:
        """Whether a law may be fitted to the run, at the grid's learning rate and text length."""
        return self.lr_multiplier == 1 and not self.other_context and not self.beyond

    @property
    def params(self) -> int:
        """Number of parameters, counted as ``count`` says."""
        model, total = self.model, self.model.n_parameters()
        if model.position is not None:
            total -= model.position.weight.numel()
        if model.head is not None:  # the embedding is looked up, at no FLOPs
            total -= model.embedding.weight.numel()
        return total - (self.model.head_weight.numel() if self.count == "blocks" else 0)

    def write_config(self) -> Path:
        """Write the config file for tools/pretrain.py, check it as a whole, and return its path.

        The run branches off the finished run of the same settings that shares most steps with it;
        if there is none, off its trunk, unless that has finished. So a budget that is added later
        continues an existing run, whether it is above or below the other budgets.
        """
        path, checkpoint = self.config_path, self.config.checkpoint
        path.parent.mkdir(parents=True, exist_ok=True)
        trunk = checkpoint.branch_of
        if trunk and (Path(trunk) / "summary.json").exists():
            trunk = ""
        checkpoint = replace(checkpoint, branch_of=self._finished_trunk() or trunk)
        write_json(path, to_dict(replace(self.config, checkpoint=checkpoint)))
        load_config(path)
        note_origin(path, self.config)
        return path

    def _finished_trunk(self) -> str:
        """Return the finished run that has the newest checkpoint of a state that this run shares.

        Such a run differs in its number of steps only. The result is empty if there is none.
        """
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
        """Return the run's row of the collected CSV; None until the run has finished.

        Raises:
            UserError: the run was made with other settings than the sweep has now.
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
        }

    def record(self) -> Row:
        """Return by which code, and when, the finished run was trained, as columns of the CSV."""
        if self.kept:
            code, (began, ended) = self.kept.code_version, self.kept.times or ("", "")
        else:
            code, (began, ended) = self._code_version(), times(RunDir(self.run_dir))
        return {"code_version": code, "began": began or None, "ended": ended or None}

    def _code_version(self) -> str:
        """Return what was noted when the run was begun; of older runs, what their summary has."""
        if noted := read_origin(self.config_path).code_versions:
            return "; ".join(noted)
        return str(read_summary(RunDir(self.run_dir).summary).get("code_version", ""))

    def curve(self) -> list[tuple[int, float]]:
        """Return tokens and training loss of the finished run, :data:`CURVE_POINTS` at most.

        The curve of a branch begins where it left its trunk, though the branch's metrics file
        begins with the trunk's lines.
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
        """Return what to keep of the run, which must have finished here."""
        summary = self._summary()
        assert summary is not None, f"{self.name} is not finished"
        settings = deciding_settings(self.config)
        return KeptRun(
            cell=self.name,
            text=read_origin(self.config_path).text or text_of(self.config),
            config={name: settings.get(name, {}) for name in CHECKED},
            code_version=self._code_version(),
            summary={name: summary.get(name) for name in FIGURES},
            curve=self.curve(),
            times=list(times(RunDir(self.run_dir))),
        )

    def _summary(self) -> dict[str, Any] | None:
        """Return the run's or the kept summary, settings checked; None until it has finished."""
        if self.kept:
            saved, what = self.kept.config, f"the kept run {self.name}"
            summary: dict[str, Any] = dict(self.kept.summary)
        elif self.is_here:
            run = RunDir(self.run_dir)
            saved, what, summary = read_json(run.config), str(run.path), read_summary(run.summary)
            self._check_text(saved)
        else:
            return None
        checked = [name for name in CHECKED if name in saved]
        sets = to_dict(self.config)["data"]["sets"]  # the text may lie elsewhere now
        saved = saved | {"data": saved.get("data", {}) | {"sets": sets}}
        if not saved.get("eval", {}).get("late_from"):  # it measured no late loss
            late = {"late_from": self.config.eval.late_from}
            saved = saved | {"eval": saved.get("eval", {}) | late}
        if key := changed_setting(saved, self.config, checked, FREE):
            raise UserError(
                f"{what} was trained with another {key} than the sweep has now; expected the "
                "same settings, or another --out (and --to)"
            )
        return summary

    def _check_text(self, saved: dict[str, Any]) -> None:
        """Refuse the run here if it was trained on another text, as far as texts are here."""
        trained, now = read_origin(self.config_path).text, here_text(self.config)
        if not trained:  # a run of an earlier version: what lies at its path is its text
            data = self.config.data
            sets = [replace(data.sets[0], path=saved["data"]["sets"][0]["path"])]
            trained = here_text(replace(self.config, data=replace(data, sets=sets)))
        if trained and now and trained != now:
            raise UserError(
                f"{self.run_dir} was trained on the text {trained}, and "
                f"{self.config.data.sets[0].path} is {now}; expected the same text and tokenizer, "
                "or another --out"
            )
