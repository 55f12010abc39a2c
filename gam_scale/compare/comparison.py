"""The cells of a comparison that are known so far: later ones depend on earlier results."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from gam_scale.compare.continued_models import continued_models, optimizer_of
from gam_scale.compare.measure_cell import MeasureCell, measure_cells
from gam_scale.compare.rates import beyond, merit
from gam_scale.compare.solve import Sized, sized
from gam_scale.compare.spec import Spec, TaskSpec, TextSpec
from gam_scale.compare.task_cell import Group, TaskCell, task_cells
from gam_scale.compare.text_cell import Budget, TextCell, best, final_loss, text_cell
from gam_scale.config import RunConfig
from gam_scale.data.manifest import read_validated
from gam_scale.experiment.cell import Cell, Row
from gam_scale.experiment.grid import AnyCell, Grid
from gam_scale.experiment.kept import restore
from gam_scale.experiment.results import kept_rows
from gam_scale.grouping import grouped
from gam_scale.strict import from_dict, merged

SURE = 0.99
"""Accuracy at which a task counts as learned and no further rate is tried."""


@dataclass(frozen=True)
class Comparison:
    """A comparison and the folder of its results."""

    spec: Spec
    folder: Path
    start: Path | None = None
    """Folder of the comparison whose trained models this one continues."""

    def cells(self) -> list[Cell]:
        """Return all cells that are known so far; the measurements of a text comparison last.

        Raises:
            UserError: a model cannot be made, or results have other settings.
        """
        if isinstance(self.spec, TaskSpec):
            return list(_of_tasks(self.spec, self.folder))
        return _of_text(self.spec, self.folder, self.models)

    @cached_property
    def models(self) -> Mapping[str, tuple[Sized, Path | None]]:
        """Every model of a text comparison at its size, and the run that it continues, if any."""
        assert isinstance(self.spec, TextSpec)
        return _models(self.spec, self.start)

    def missing(self) -> Grid[Cell]:
        """Return the unfinished cells, each as a job, in the order in which they are trained.

        Measurements come first: the run that they need may be lost before the comparison ends.
        """
        missing = [cell for cell in self.cells() if cell.row() is None]
        missing.sort(key=lambda cell: not isinstance(cell, MeasureCell))
        return Grid([[cell] for cell in missing])

    def rows(self) -> list[Row]:
        """Return the rows of finished cells."""
        return [row for _, row in _finished(self.cells())]

    def rows_to_keep(self) -> list[Row]:
        """Return the rows of finished cells, then rows of the same models that wait to be known.

        A further seed, for example, waits when a rate is added at which its model has yet to be
        trained. Its row counts again once that is done.
        """
        rows = self.rows()
        known = {row["cell"] for row in rows}
        models = self.spec.models if isinstance(self.spec, TaskSpec) else self.models
        kept = kept_rows(self.folder).items()
        return [*rows, *(r for name, r in kept if name not in known and r["model"] in models)]

    def restore(self, rows: Sequence[Row]) -> None:
        """Count cells as finished whose rows were kept elsewhere; see :func:`kept.restore`."""
        restore(self.folder, rows)


def _models(spec: TextSpec, start: Path | None) -> Mapping[str, tuple[Sized, Path | None]]:
    manifest = read_validated(spec.data)
    if not spec.models:
        return continued_models(spec, start)
    vocabulary = manifest.tokenizer.vocab_size
    shared = {"vocab_size": vocabulary, **spec.set.get("model", {})}
    return {
        name: (sized(name, entry, shared, spec.size), None) for name, entry in spec.models.items()
    }


def _of_tasks(spec: TaskSpec, folder: Path) -> list[TaskCell]:
    more: dict[Group, list[float]] = {}
    while True:
        tuned = _best_rows(task_cells(spec, folder, {}, more))
        further = {}
        for group, (rate, row) in tuned.items():
            tried = [*spec.lrs, *more.get(group, [])]
            next_rate = _further_rate(len(spec.lrs) + spec.widen, tried, rate)
            if next_rate is not None and row["checked"] < SURE:
                further[group] = [*more.get(group, []), next_rate]
        if not further:
            rates = {group: rate for group, (rate, _) in tuned.items()}
            return task_cells(spec, folder, rates, more)
        more |= further


def _best_rows(cells: Sequence[TaskCell]) -> dict[Group, tuple[float, Row]]:
    """Return the best rate and its row for each group whose cells are all finished."""
    best_ones = {}
    for group, members in grouped(cells, lambda cell: cell.group).items():
        finished = _finished(members)
        if len(finished) == len(members):
            cell, row = max(finished, key=lambda each: merit([each[1]]))
            best_ones[group] = cell.lr, row
    return best_ones


def _of_text(
    spec: TextSpec, folder: Path, models: Mapping[str, tuple[Sized, Path | None]]
) -> list[Cell]:
    full = Budget("full", spec.tokens, spec.warmup, spec.times_auto)
    first, *others = spec.seeds
    tuned: list[TextCell] = []
    trained: list[TextCell] = []
    besides: list[TextCell] = []
    runs: dict[str, Callable[[Budget, float, int], TextCell]] = {}
    for name, (size, run) in models.items():
        own = spec.entry(name).train if run is None else optimizer_of(run)
        config = _shared(spec, own)
        if run is not None:
            checkpoint = replace(config.checkpoint, continue_from=str(run))
            config = replace(config, checkpoint=checkpoint)
        runs[name] = run_of = partial(text_cell, folder, name, size, config)
        rate: float | None = spec.lrs_of(name)[0]
        if spec.tune_tokens:
            cells, rate = _tuned(spec, spec.lrs_of(name), run_of)
            tuned += cells
        if rate is not None and spec.tokens:
            trained.append(run_of(full, rate, first))
            more = (lr for lr in spec.entry(name).full_lrs if lr != rate)
            besides += [run_of(full, lr, first) for lr in more]
    again = _repeated(spec, [*trained, *besides], len(models))
    trained += besides
    trained += [runs[c.model_name](full, c.rate, seed) for seed in others for c in again]
    measured = [
        each
        for cell, row in _finished(trained)
        if math.isfinite(final_loss(row))  # of a run that diverged there is nothing to measure
        for each in measure_cells(cell, cell.model_name, spec.measure)
        if cell.run_dir.exists() or each.row() is not None  # a lost run may be measured
    ]
    return [*sorted(tuned, key=lambda cell: cell.flops), *trained, *measured]


def _tuned(
    spec: TextSpec, given: Sequence[float], run_of: Callable[[Budget, float, int], TextCell]
) -> tuple[list[TextCell], float | None]:
    """Return the runs that tune a model, and the best rate; None while runs are missing."""
    budget = Budget("tune", spec.tune_tokens, spec.warmup, spec.times_auto)
    lrs = list(given)
    while True:
        cells = [run_of(budget, lr, spec.seeds[0]) for lr in lrs]
        finished = _finished(cells)
        if len(finished) < len(cells):
            return cells, None
        rate = best(finished)[0].rate
        more = _further_rate(len(given) + spec.widen, lrs, rate)
        if more is None:
            return cells, rate
        lrs.append(more)


def _repeated(spec: TextSpec, trained: Sequence[TextCell], models: int) -> list[TextCell]:
    """Return the runs that further seeds repeat: the best of each model whose runs have finished.

    If ``spec.repeat`` limits the models, return those of the best, once all models have finished.

    Args:
        spec: the comparison.
        trained: the full runs of the first seed, of the models that have a rate.
        models: number of models.
    """
    groups = grouped(trained, lambda cell: cell.model_name).values()
    done = [runs for cells in groups if len(runs := _finished(cells)) == len(cells)]
    best_ones = [best(runs) for runs in done]
    if spec.repeat:
        best_ones.sort(key=lambda each: final_loss(each[1]))
        best_ones = best_ones[: spec.repeat] if len(done) == models else []
    return [cell for cell, _ in best_ones]


def _further_rate(most: int, tried: Sequence[float], best: float) -> float | None:
    """Return :func:`beyond` of the rates, or None once ``most`` rates were tried."""
    return beyond(tried, best) if len(tried) < most else None


def _finished(cells: Sequence[AnyCell]) -> list[tuple[AnyCell, Row]]:
    return [(cell, row) for cell in cells if (row := cell.row()) is not None]


def _shared(spec: TextSpec, train: dict[str, Any]) -> RunConfig:
    """Return the config that all runs of a model share: the file's, with its own ``train``."""
    quiet = {"wandb": "off", "tensorboard": False}
    values: dict[str, Any] = {
        "data": {"sets": [{"path": spec.data}]},
        "parallel": {"engine": "torch", "preflight": False},
        "eval": {"every_steps": 0},
        "log": quiet,
    }
    given = {name: settings for name, settings in spec.set.items() if name != "model"}
    return from_dict(RunConfig, merged(merged(values, given), {"train": train}))
