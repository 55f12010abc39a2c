"""A cell of a task comparison: one model learns one synthetic task at one rate, from one seed.

``python -m gam_scale.compare.task_cell CONFIG...`` trains cells one after another. A killed cell
begins anew, because it takes only minutes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gam_scale import cli
from gam_scale.compare.solve import settings_over
from gam_scale.compare.spec import TaskSpec
from gam_scale.config import ModelConfig, RunConfig, TrainConfig
from gam_scale.config.sections import DataConfig, LogConfig
from gam_scale.evaluate.recall import RecallConfig, RecallResult, model_of, tasks_of
from gam_scale.evaluate.state_size import memory_size
from gam_scale.experiment.cell import Row
from gam_scale.experiment.code_version import code_version
from gam_scale.experiment.deciding import without_defaults
from gam_scale.experiment.kept import KeptCell, keep_row_with_config
from gam_scale.experiment.results import kept_row
from gam_scale.run.lock import RunLock
from gam_scale.strict import from_dict, option, read_record, to_dict
from gam_scale.train.recall import train_recall

Group = tuple[str, str, int]
"""Task, model and width."""


@dataclass
class TaskRun:
    """The config file of a task cell."""

    task: str = option("", "name of the task")
    model_name: str = option("", "name of the model")
    folder: str = option("", "folder of the comparison")
    recall: dict[str, Any] = option({}, "settings of the task")
    model: dict[str, Any] = option({}, "the model section")


@dataclass(frozen=True, kw_only=True)
class TaskCell(KeptCell):
    """One model on one task, at one learning rate and from one seed."""

    trainer: ClassVar[str] = "gam_scale.compare.task_cell"

    task: str
    model_name: str
    recall: RecallConfig

    @property
    def name(self) -> str:
        """See :attr:`Cell.name`."""
        width = self.config.model.d_model
        return f"{self.task}-{self.model_name}-d{width}-lr{self.lr:g}-s{self.seed}"

    @property
    def lr(self) -> float:
        """The peak learning rate."""
        return self.recall.lrs[0]

    @property
    def group(self) -> Group:
        """Key of the cells among which the best learning rate is chosen."""
        return self.task, self.model_name, self.config.model.d_model

    def write_config(self) -> Path:
        """See :meth:`Cell.write_config`."""
        run = TaskRun(
            self.task,
            self.model_name,
            str(self.folder.absolute()),
            to_dict(self.recall),
            to_dict(self.config.model),
        )
        return self.write_once(run)

    def harmless_changes(self, saved: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
        """See :meth:`KeptCell.harmless_changes`: defaults of settings newer than the file."""
        sections = {"recall": RecallConfig, "model": ModelConfig}
        return {key: to_dict(from_dict(cls, saved[key], key)) for key, cls in sections.items()}


def task_cells(
    spec: TaskSpec, folder: Path, rates: dict[Group, float], beyond: dict[Group, list[float]]
) -> list[TaskCell]:
    """Return cells of the first seed at every rate, and of further seeds at the best rates.

    Args:
        spec: the comparison.
        folder: folder of its results.
        rates: the best rates that are known, by :attr:`TaskCell.group`.
        beyond: rates that are tried besides the file's, by :attr:`TaskCell.group`.
    """
    cells = []
    for task, entry in spec.tasks.items():
        for name in entry.models or spec.models:
            settings = settings_over(spec.model, spec.models[name])
            own = settings.get("d_model", ModelConfig.d_model)
            for width in entry.own_widths.get(name) or entry.widths or [own]:
                made = [
                    _cell(folder, task, name, entry.recall, settings | {"d_model": width}, lr, seed)
                    for seed in spec.seeds
                    for lr in [*spec.lrs, *beyond.get((task, name, width), [])]
                ]
                first = spec.seeds[0]
                cells += [
                    cell for cell in made if cell.seed == first or cell.lr == rates.get(cell.group)
                ]
    return sorted(cells, key=lambda cell: (cell.seed != spec.seeds[0], cell.flops))


def _cell(
    folder: Path,
    task: str,
    name: str,
    settings: dict[str, Any],
    model: dict[str, Any],
    lr: float,
    seed: int,
) -> TaskCell:
    own = {"lrs": [lr], "seed": seed}
    recall: RecallConfig = from_dict(RecallConfig, settings | own, f"tasks.{task}.recall")
    lengths = [each.seq_len for each in tasks_of(recall, recall.train)]
    config = RunConfig(
        model_of(recall, model),
        data=DataConfig(seq_len=round(sum(lengths) / len(lengths))),
        train=TrainConfig(steps=recall.steps, global_batch_size=recall.batch_size, lr=lr),
    )
    cell = TaskCell(
        seed=seed, config=config, folder=folder, task=task, model_name=name, recall=recall
    )
    config.log = LogConfig(run_dir=str(folder / "runs" / cell.name))
    return cell


def learn(path: Path) -> None:
    """Train the cell of a config file and keep its row, unless the row is there already."""
    run: TaskRun = read_record(TaskRun, path)
    folder = Path(run.folder)
    if kept_row(folder, path.stem) is not None:
        return
    recall = from_dict(RecallConfig, run.recall, "recall")
    model = from_dict(ModelConfig, run.model, "model")
    with RunLock(folder / "runs" / path.stem):
        result = train_recall(run.model_name, recall, model, log=_say)
        config = {
            "task": run.task,
            "model_name": run.model_name,
            "recall": without_defaults(to_dict(recall), to_dict(RecallConfig())),
            "model": without_defaults(to_dict(model), to_dict(ModelConfig())),
        }
        keep_row_with_config(folder, path.stem, _row(run, recall, model, result), config)


def _say(line: str) -> None:
    print(line, flush=True)


def _row(run: TaskRun, recall: RecallConfig, model: ModelConfig, result: RecallResult) -> Row:
    longest = max(score.task.seq_len for score in result.scores)
    return {
        "task": run.task,
        "model": run.model_name,
        "width": model.d_model,
        "lr": result.lr,
        "seed": recall.seed,
        "parameters": result.parameters,
        "memory": memory_size(model),
        "state": result.state.at(longest),
        "steps": result.steps,
        "seconds": round(result.seconds, 1),
        "checked": result.curve[-1][1],
        "scores": [
            {
                "label": s.task.label,
                "size": s.task.size,
                "tokens": s.task.seq_len,
                "accuracy": s.accuracy.mean,
                "low": s.accuracy.low,
                "high": s.accuracy.high,
                "chance": s.task.guess,
            }
            for s in result.scores
        ],
        "columns": list(result.scores[0].task.columns),
        "trained": recall.train,
        "curve": [[step, round(accuracy, 4)] for step, accuracy in result.curve],
        "code_version": code_version(),
    }


def main() -> None:
    """Train the cells of all config files on the command line."""
    for path in sys.argv[1:]:
        learn(Path(path))


if __name__ == "__main__":
    cli.run(main)
