"""Models of another comparison, which this one goes on from."""

from pathlib import Path
from typing import Any

from gam_scale.compare.solve import Sized
from gam_scale.compare.spec import TextSpec
from gam_scale.compare.text_cell import reached
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.experiment.cell import Row
from gam_scale.experiment.results import kept_rows
from gam_scale.strict import from_dict, read_json, to_dict


def started(spec: TextSpec, start: Path | None) -> dict[str, tuple[Sized, Path]]:
    """By name, those that ``spec.start`` and ``start_best`` ask for, and the runs of their first
    seed.

    Raises:
        UserError: they, or what is left of their training, are not there.
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
    """Settings of the train section under which a run's optimizer can be gone on with."""
    train = from_dict(RunConfig, read_json(run / "config.json")).train
    return {"optimizer": train.optimizer, "muon_momentum": train.muon_momentum}


def _first_full(start: Path) -> dict[str, tuple[str, Row]]:
    """By model, its full run of the first seed: the cell's name and row."""
    full_runs: dict[str, tuple[str, Row]] = {}
    for cell, row in kept_rows(start).items():
        if row.get("stage") == "full":
            before = full_runs.get(row["model"])
            if before is None or row["seed"] < before[1]["seed"]:
                full_runs[row["model"]] = cell, row
    return full_runs


def _best(spec: TextSpec, start: Path, rows: dict[str, tuple[str, Row]]) -> list[str]:
    losses = {
        name: reached(row)
        for name, (_, row) in rows.items()
        if name not in spec.start and "attention" not in row["layers"]
    }
    if len(losses) < spec.start_best:
        raise UserError(
            f"{start} has finished full runs of {len(losses)} models without attention and "
            f"start_best is {spec.start_best}; expected those of as many"
        )
    return sorted(losses, key=lambda name: losses[name])[: spec.start_best]


def _model(start: Path, cell: str, row: Row) -> tuple[Sized, Path]:
    run = (start / "runs" / cell).absolute()
    if not (run / "config.json").exists():
        raise UserError(
            f"{run} is not there, of which only the result was kept; expected the run, which is "
            "trained again where the result is removed"
        )
    config = from_dict(RunConfig, read_json(run / "config.json"))  # with its own horizons
    return Sized.of(to_dict(config.model), row["ffn_width"]), run
