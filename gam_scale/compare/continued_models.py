"""Trained models of another comparison that a comparison continues."""

import math
from pathlib import Path
from typing import Any

from gam_scale.compare.solve import Sized
from gam_scale.compare.spec import TextSpec
from gam_scale.compare.text_cell import final_loss
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Row
from gam_scale.experiment.results import kept_rows
from gam_scale.strict import from_dict, read_json, to_dict


def continued_models(spec: TextSpec, start: Path | None) -> dict[str, tuple[Sized, Path]]:
    """Return the models that ``spec.start`` and ``start_best`` ask for, with the runs to continue.

    Raises:
        UserError: ``start`` is None, or a model or its run is not there.
    """
    if start is None:
        raise UserError("the comparison goes on from another one's models; expected --start DIR")
    rows = _first_full(start)
    for name in spec.start:
        if name not in rows:
            raise UserError(
                f"{start} has no finished full run of {name}; expected the --out of a text "
                "comparison that trained it"
            )
    names = [*_best(spec, start, rows), *spec.start]
    return {name: _model(start, *rows[name]) for name in names}


def optimizer_of(run: Path) -> dict[str, Any]:
    """Return the settings of the train section that a run's optimizer needs to continue."""
    train = from_dict(RunConfig, read_json(run / "config.json")).train
    return {"optimizer": train.optimizer, "muon_momentum": train.muon_momentum}


def _first_full(start: Path) -> dict[str, tuple[str, Row]]:
    """Return cell and row of each model's best full run among those of its lowest seed."""
    full_runs: dict[str, tuple[str, Row]] = {}
    for cell, row in kept_rows(start).items():
        if row.get("stage") == "full":
            before = full_runs.get(row["model"])
            if before is None or _order(row) < _order(before[1]):
                full_runs[row["model"]] = cell, row
    return full_runs


def _order(row: Row) -> tuple[int, float]:
    return row["seed"], final_loss(row)


def _best(spec: TextSpec, start: Path, rows: dict[str, tuple[str, Row]]) -> list[str]:
    losses = {
        name: final_loss(row)
        for name, (_, row) in rows.items()
        if name not in spec.start and "attention" not in row["layers"]
    }
    losses = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    if len(losses) < spec.start_best:
        raise UserError(
            f"{start} has finished full runs, not diverged, of {len(losses)} models without "
            f"attention and start_best is {spec.start_best}; expected those of as many"
        )
    return sorted(losses, key=lambda name: losses[name])[: spec.start_best]


def _model(start: Path, cell: str, row: Row) -> tuple[Sized, Path]:
    run = (start / "runs" / cell).absolute()
    if not (run / "config.json").exists():
        raise UserError(
            f"{run} is not there, of which only the result was kept; expected the run, which is "
            "trained again where the result is removed"
        )
    config = from_dict(RunConfig, read_json(run / "config.json"))  # keeps the run's own horizons
    return Sized.of(to_dict(config.model), row["ffn_width"]), run
