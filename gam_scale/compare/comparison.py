"""The cells of a comparison that can be trained now: what comes later waits for earlier results."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from gam_scale.compare.kept import kept_row
from gam_scale.compare.measure_cell import measure_cells
from gam_scale.compare.solve import Sized, parameters_of, sized
from gam_scale.compare.spec import Spec, TaskSpec, TextSpec
from gam_scale.compare.task_cell import TaskCell, task_cells
from gam_scale.compare.text_cell import Budget, TextCell, best, text_cell
from gam_scale.config import RunConfig
from gam_scale.data.manifest import read_manifest
from gam_scale.errors import UserError
from gam_scale.evaluate.state_size import memory_size, state_size
from gam_scale.experiment.cell import Cell, Row
from gam_scale.experiment.grid import Grid
from gam_scale.model.lm import outline
from gam_scale.strict import from_dict, read_json, to_dict


@dataclass(frozen=True)
class Comparison:
    """A comparison and the folder of its results."""

    spec: Spec
    folder: Path
    start: Path | None = None
    """Folder of the comparison whose models are gone on from."""

    def cells(self) -> list[Cell]:
        """All that are known now, in the order in which they are trained.

        Raises:
            UserError: a model that cannot be made, or results of other settings.
        """
        if isinstance(self.spec, TaskSpec):
            return list(_of_tasks(self.spec, self.folder))
        return _of_text(self.spec, self.folder, self.start)

    def missing(self) -> Grid[Cell]:
        """Those that are not finished, each a job."""
        return Grid([[cell] for cell in self.cells() if cell.row() is None])

    def rows(self) -> list[Row]:
        """What is finished."""
        return [row for cell in self.cells() if (row := cell.row()) is not None]


def models_of(spec: TextSpec, start: Path | None = None) -> dict[str, Sized]:
    """Every model of a text comparison, at its size."""
    if spec.start:
        return {name: _started(name, start)[0] for name in spec.start}
    vocabulary = read_manifest(spec.data).tokenizer.vocab_size
    shared = {"vocab_size": vocabulary, **spec.set.get("model", {})}
    return {name: sized(name, entry, shared, spec.size) for name, entry in spec.models.items()}


def _of_tasks(spec: TaskSpec, folder: Path) -> list[TaskCell]:
    first = task_cells(spec, folder, {})
    rates = {}
    for group, members in groupby(sorted(first, key=_group), key=_group):
        found = [(cell, cell.row()) for cell in members]
        rows = [(row["checked"], _mean_accuracy(row), -cell.lr) for cell, row in found if row]
        if len(rows) == len(found):
            rates[group] = -max(rows)[2]  # of equals the one that tests better, then the smaller
    return task_cells(spec, folder, rates)


def _group(cell: TaskCell) -> tuple[str, str, int]:
    return cell.group


def _mean_accuracy(row: Row) -> float:
    return sum(score["accuracy"] for score in row["scores"]) / len(row["scores"])


def _of_text(spec: TextSpec, folder: Path, start: Path | None) -> list[Cell]:
    models, shared = models_of(spec, start), _shared(spec)
    full = Budget("full", spec.tokens, spec.warmup)
    first, *others = spec.seeds
    tuned: list[TextCell] = []
    trained: list[TextCell] = []
    rates: dict[str, float] = {}
    for name, size in models.items():
        config = shared
        if spec.start:
            checkpoint = replace(shared.checkpoint, continue_from=str(_started(name, start)[1]))
            config = replace(shared, checkpoint=checkpoint)
        rate: float | None = spec.lrs[0]
        if spec.tune_tokens:
            tune = Budget("tune", spec.tune_tokens, spec.warmup)
            cells = [text_cell(folder, name, size, config, tune, lr, first) for lr in spec.lrs]
            tuned += cells
            found = _finished(cells)
            is_tuned = len(found) == len(cells)
            rate = best(found)[0].config.train.lr if is_tuned else None
        if rate is not None:
            rates[name] = rate
            trained.append(text_cell(folder, name, size, config, full, rate, first))
    again = _repeated(spec, trained) if len(trained) == len(models) else []
    for seed in others:
        for cell in again:
            name = cell.model_name
            trained.append(
                text_cell(folder, name, cell.sized, cell.config, full, rates[name], seed)
            )
    measured = [
        each
        for cell, _ in _finished(trained)
        for each in measure_cells(cell, cell.model_name, spec.measure)
    ]
    return [*tuned, *trained, *measured]


def _repeated(spec: TextSpec, trained: Sequence[TextCell]) -> list[TextCell]:
    """The runs of the first seed that further seeds repeat; none while some are to come."""
    found = _finished(trained)
    if not spec.repeat:
        return list(trained)
    if len(found) < len(trained):
        return []
    order = sorted(found, key=lambda each: each[1]["val_loss"])
    return [cell for cell, _ in order[: spec.repeat]]


def _finished(cells: Sequence[TextCell]) -> list[tuple[TextCell, Row]]:
    return [(cell, row) for cell in cells if (row := cell.row()) is not None]


def _shared(spec: TextSpec) -> RunConfig:
    """What all runs have."""
    quiet = {"wandb": "off", "tensorboard": False}
    values: dict[str, Any] = {
        "data": {"sets": [{"path": spec.data}]},
        "train": {},
        "parallel": {"engine": "torch", "preflight": False},
        "eval": {"every_steps": 0},
        "log": quiet,
    }
    for name, settings in spec.set.items():
        if name != "model":
            values[name] = values.get(name, {}) | settings
    return from_dict(RunConfig, values)


def _started(name: str, start: Path | None) -> tuple[Sized, Path]:
    """A model of another comparison as it was trained in full from its first seed, and its run."""
    if start is None:
        raise UserError("the comparison goes on from another one's models; expected --start DIR")
    found = []
    for path in sorted((start / "results").glob(f"{name}-full-*.json")):
        row = kept_row(start, path.stem)
        if row is not None and row.get("stage") == "full" and row["model"] == name:
            found.append((row["seed"], path.stem, row))
    if not found:
        raise UserError(
            f"{start} has no finished full run of {name}; expected the --out of a text comparison "
            "that trained it"
        )
    _, stem, row = min(found, key=lambda each: each[0])
    run = (start / "runs" / stem).absolute()
    config = from_dict(RunConfig, read_json(run / "config.json"))  # with its own horizons
    size = Sized(
        to_dict(config.model),
        parameters_of(outline(config.model)),
        memory_size(config.model),
        state_size(config.model),
        row["ffn_width"],
    )
    return size, run
