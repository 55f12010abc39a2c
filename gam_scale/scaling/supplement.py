"""The supplement of a report on laws: training curves, learning rates, contexts and forecasts.

Each part is optional and read from a file: ``curves.csv``, ``lr.csv`` and ``contexts.csv`` of
tools/sweep.py collect, the JSON of tools/evaluate.py, an earlier report's ``extrapolation.csv``.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gam_scale.errors import UserError
from gam_scale.grouping import grouped
from gam_scale.report.numbers import large
from gam_scale.scaling.contexts import Context, read_contexts
from gam_scale.scaling.forecasts import Forecast, read_forecasts
from gam_scale.scaling.runs_csv import read_number, read_table, read_text
from gam_scale.strict import read_json

CURVE_COLUMNS = ("family", "params", "run", "tokens", "loss")
RATE_COLUMNS = ("family", "params", "lr_multiplier", "lr", "loss")


@dataclass(frozen=True)
class Curve:
    """Training loss of one run; of a branch, without the steps of its trunk."""

    family: str
    params: float
    tokens: list[float]
    loss: list[float]


@dataclass(frozen=True)
class Rates:
    """The losses of one family at one size, by ascending learning rate."""

    family: str
    params: float
    multipliers: list[float]
    lrs: list[float]
    losses: list[float]


@dataclass(frozen=True)
class Positions:
    """Loss of one checkpoint by tokens of context, with intervals, whose ends may be nan."""

    name: str
    first: list[int]
    last: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Recalled:
    """Accuracy of one kind of model on associative recall, by task."""

    name: str
    scores: dict[str, tuple[float, float, float]]
    """Mean, low and high by task, such as ``8 in 128``: pairs in tokens."""


@dataclass(frozen=True)
class Supplement:
    """All parts of a supplement; a part that was not given is empty."""

    curves: list[Curve] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    positions: list[Positions] = field(default_factory=list)
    recall: list[Recalled] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    sweep: str = ""
    """The sweep file's text."""
    limits: tuple[str, ...] = ()
    """Sentences on what the runs do not show."""

    def shown(self) -> list[str]:
        """Return a sentence on each forecast and its run."""
        return [forecast.sentence() for forecast in self.forecasts]

    def sentences(self) -> list[str]:
        """Return sentences on what else the runs do not show."""
        on_rates = [rate_sentence(r.family, r.params, r.multipliers, r.losses) for r in self.rates]
        return [*self.limits, *(f"{sentence}." for sentence in on_rates if sentence)]


ENOUGH = 0.01  # nats up to which another learning rate counts as no better


def rate_sentence(family: str, params: float, multipliers: list[float], losses: list[float]) -> str:
    """Return a sentence on the best multiple of the learning rate; empty unless 1 has rivals."""
    if 1.0 not in multipliers or len(multipliers) < 2:
        return ""
    best = losses.index(min(losses))
    gain = losses[multipliers.index(1.0)] - losses[best]
    if gain <= ENOUGH:
        return (
            f"{family} of {large(params)} parameters: no other learning rate tried is better by "
            f"more than {ENOUGH} nats"
        )
    edge = ", the last tried" if multipliers[best] in (min(multipliers), max(multipliers)) else ""
    return (
        f"{family} of {large(params)} parameters: {multipliers[best]:g} times the learning rate"
        f"{edge}, is better by {gain:.3f} nats"
    )


def read_supplement(
    curves: Iterable[Path] = (),
    rates: Path | None = None,
    evaluations: Iterable[Path] = (),
    sweep: Path | None = None,
    contexts: Path | None = None,
    limits: Iterable[str] = (),
    forecast: Path | None = None,
    forecast_runs: Path | None = None,
    loss_unit: str | None = None,
) -> Supplement:
    """Read the parts of a supplement that are given.

    Args:
        curves: CSV files with the columns of :data:`CURVE_COLUMNS`, a row for every logged loss.
        rates: CSV with the columns of :data:`RATE_COLUMNS`.
        evaluations: JSON files of tools/evaluate.py.
        sweep: sweep file of tools/sweep.py.
        contexts: see :func:`read_contexts`.
        limits: sentences on what the runs do not show.
        forecast: see :func:`read_forecasts`.
        forecast_runs: the ``runs`` of :func:`read_forecasts`.
        loss_unit: unit of the losses in ``forecast_runs``; all other losses are in nats.

    Raises:
        UserError: a file is not valid; the message names it and what cannot be read.
    """
    supplement = Supplement(
        [curve for path in curves for curve in _curves(path)],
        _rates(rates) if rates is not None else [],
        contexts=read_contexts(contexts) if contexts is not None else [],
        forecasts=[] if forecast is None else read_forecasts(forecast, forecast_runs, loss_unit),
        sweep=json.dumps(read_json(sweep), indent=2) if sweep is not None else "",
        limits=tuple(limits),
    )
    for path in evaluations:
        _add_evaluation(path, supplement)
    return supplement


def _curves(path: Path) -> list[Curve]:
    rows = _rows(path, CURVE_COLUMNS, numbers=("params", "tokens", "loss"))
    runs = grouped(rows, lambda row: (row["family"], row["params"], row["run"]))
    curves = []
    for (family, params, _), points in runs.items():
        tokens, losses = ([point[name] for point in points] for name in ("tokens", "loss"))
        curves.append(Curve(family, params, tokens, losses))
    return curves


def _rates(path: Path) -> list[Rates]:
    rows = _rows(path, RATE_COLUMNS, numbers=RATE_COLUMNS[1:])

    def size(row: dict[str, Any]) -> tuple[str, float]:
        return row["family"], row["params"]

    rows.sort(key=lambda row: (*size(row), row["lr_multiplier"]))
    return [
        Rates(*key, *([row[name] for row in of_size] for name in RATE_COLUMNS[2:]))
        for key, of_size in grouped(rows, size).items()
    ]


def _rows(path: Path, wanted: Iterable[str], numbers: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {
            name: read_number(path, line, name, row[name])
            if name in numbers
            else read_text(path, line, name, row[name])
            for name in wanted
        }
        for _, line, row in read_table(path, wanted)
    ]


def _add_evaluation(path: Path, supplement: Supplement) -> None:
    data = read_json(path)
    try:
        for one in data["checkpoints"]:
            if one.get("by_position"):
                supplement.positions.append(_positions(one))
        for one in data["recall"]:
            supplement.recall.append(Recalled(one["kind"], dict(map(_score, one["scores"]))))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path} is not what tools/evaluate.py writes; expected the file of its --json with "
            "--by-position or --recall"
        ) from None


def _positions(one: dict[str, Any]) -> Positions:
    bins = [b for b in one["by_position"]["bins"] if b["loss"] is not None]
    # An end of an interval that resampling could not tell is null.
    ends = [[_or_nan(b["loss"][end]) for b in bins] for end in ("mean", "low", "high")]
    return Positions(one["name"], [b["first"] for b in bins], [b["last"] for b in bins], *ends)


def _score(score: dict[str, Any]) -> tuple[str, tuple[float, float, float]]:
    task, accuracy = score["task"], score["accuracy"]
    mean, low, high = (_or_nan(accuracy[end]) for end in ("mean", "low", "high"))
    return f"{task['pairs']} in {task['seq_len']}", (mean, low, high)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
