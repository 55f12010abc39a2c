"""Losses that were predicted before their runs, beside the losses that the runs reached.

A forecast is the loss that an earlier report predicted for a model given with ``--at``. That
report's extrapolation.csv is kept until the runs are done.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.report.numbers import UNKNOWN, Range, large, ranged
from gam_scale.report.table import Table
from gam_scale.scaling.extrapolation import ASKED
from gam_scale.scaling.runs_csv import in_nats, read_number, read_table, read_text

COLUMNS = ("family", "tokens_by", "params", "tokens", "loss", "loss_run_low", "loss_run_high")
RUN_COLUMNS = ("family", "params", "tokens", "loss")
REPORT = "extrapolation.csv of a report that was made with --at"
NEAR = 0.02
"""Largest relative difference of a run's size or tokens from the forecast's; steps are whole."""
CLOSE = 0.005
"""Relative error up to which a forecast counts as met."""


@dataclass(frozen=True)
class Forecast:
    """The forecast of one model's loss."""

    family: str
    params: float
    tokens: float
    loss: float
    interval: Range
    """95% interval of one run's loss."""
    measured: float | None = None
    """Loss that the run reached; None before the run."""

    @property
    def error(self) -> float:
        """Relative error of the forecast, once the loss is measured."""
        assert self.measured is not None
        return self.loss / self.measured - 1

    def sentence(self) -> str:
        """Return a sentence that compares the forecast with the run."""
        model = f"{self.family} of {large(self.params)} parameters on {large(self.tokens)} tokens"
        said = f"{model} was forecast to reach {ranged(self.loss, self.interval)} before it was run"
        if self.measured is None:
            return f"{said}, which it has not been."
        inside = self.interval is not None and self.interval[0] <= self.measured <= self.interval[1]
        met = "met" if abs(self.error) <= CLOSE else f"missed, for more than {CLOSE:.1%} was off"
        where = "" if self.interval is None else f", {'in' if inside else 'out'}side the interval"
        return f"{said} and came to {self.measured:.3f}, {self.error:+.2%} off{where}: {met}."


def read_forecasts(forecast: Path, runs: Path | None, unit: str | None = None) -> list[Forecast]:
    """Read the forecasts of an earlier report, with the losses that their runs reached.

    Args:
        forecast: extrapolation.csv of that report.
        runs: CSV with the columns of :data:`RUN_COLUMNS`, such as runs.csv of a sweep; None: not
            run yet.
        unit: unit of the losses in ``runs``, see :func:`~gam_scale.scaling.runs_csv.read_csv`;
            forecasts are in nats.

    Raises:
        UserError: a file is not valid, or a run fits no forecast, or one that already has a run.
    """
    forecasts = _read(forecast)
    for line, family, (params, tokens, loss) in _runs(runs, unit) if runs is not None else ():
        of_it = [
            (abs(f.params / params - 1) + abs(f.tokens / tokens - 1), i)
            for i, f in enumerate(forecasts)
            if f.family == family and _near(f.params, params) and _near(f.tokens, tokens)
        ]
        if not of_it:
            raise UserError(
                f"{runs}: line {line} is a {family} of {large(params)} parameters on "
                f"{large(tokens)} tokens, which {forecast} does not forecast; expected runs of its "
                "models alone"
            )
        _, nearest = min(of_it)
        if forecasts[nearest].measured is not None:
            raise UserError(
                f"{runs}: line {line} is a second run of one forecast; expected one run of each"
            )
        forecasts[nearest] = replace(forecasts[nearest], measured=loss)
    return forecasts


def forecast_table(forecasts: list[Forecast]) -> Table:
    """Return a table of forecast and measured losses."""
    rows = [
        [
            f.family,
            large(f.params),
            large(f.tokens),
            ranged(f.loss, f.interval),
            "" if f.measured is None else f"{f.measured:.3f}",
            "" if f.measured is None else f"{f.error:+.2%}",
        ]
        for f in forecasts
    ]
    note = (
        "Nats per token, written down before the run; the interval is of one run's loss: that of "
        "the law and the scatter of runs around it."
    )
    header = ["family", "N", "D", "forecast", "measured", "off by"]
    return Table("Forecasts", header, rows, note)


def _read(path: Path) -> list[Forecast]:
    forecasts = []
    for _, line, row in read_table(path, COLUMNS, REPORT):
        if row["tokens_by"] != ASKED or row["loss"] == UNKNOWN:
            continue
        numbers = {
            name: read_number(path, line, name, row[name])
            for name in COLUMNS[2:]
            if row[name] or name not in COLUMNS[5:]
        }
        ends = [numbers[name] for name in COLUMNS[5:] if name in numbers]
        interval = (ends[0], ends[1]) if len(ends) == 2 else None
        family = read_text(path, line, "family", row["family"])
        params, tokens, loss = (numbers[name] for name in COLUMNS[2:5])
        forecasts.append(Forecast(family, params, tokens, loss, interval))
    if not forecasts:
        raise UserError(f"{path} forecasts nothing; expected {REPORT}")
    return forecasts


def _runs(path: Path, unit: str | None) -> list[tuple[int, str, tuple[float, float, float]]]:
    rows = read_table(path, RUN_COLUMNS)
    losses = in_nats(rows, [read_number(path, i, "loss", row["loss"]) for _, i, row in rows], unit)
    runs = []
    for (_, line, row), loss in zip(rows, losses, strict=True):
        n, d = (read_number(path, line, name, row[name]) for name in RUN_COLUMNS[1:3])
        runs.append((line, read_text(path, line, "family", row["family"]), (n, d, loss)))
    return runs


def _near(a: float, b: float) -> bool:
    return abs(a / b - 1) <= NEAR
