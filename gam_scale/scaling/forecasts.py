"""Losses that a report predicted, beside the losses that the runs reached later.

A forecast is the loss that an earlier report predicted for a model given with ``--at``. That
report's extrapolation.csv is kept until the runs are done. It says which runs the law was fitted
to and when it was made, so a run that the law had seen, or that had ended, is refused.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from gam_scale.errors import UserError
from gam_scale.report.numbers import UNKNOWN, Range, large, ranged, scientific
from gam_scale.report.table import Table
from gam_scale.scaling.extrapolation import ASKED
from gam_scale.scaling.moments import read_moment
from gam_scale.scaling.runs_csv import in_nats, read_number, read_table, read_text
from gam_scale.scaling.source import FITTED_COLUMNS, MADE_COLUMNS

COLUMNS = ("family", "tokens_by", "params", "tokens", "loss", "loss_run_low", "loss_run_high")
RUN_COLUMNS = ("family", "params", "tokens", "loss")
OPTIONAL = ("code_version", "began", "ended")
"""Further columns of runs, which collect writes: without them nothing shows what came first."""
REPORT = "extrapolation.csv of a report that was made with --at"
NEAR = 0.02
"""Largest relative difference of a run's size or tokens from the forecast's; steps are whole."""
CLOSE = 0.005
"""Relative error up to which a forecast counts as met."""


@dataclass(frozen=True)
class Made:
    """What a forecast was made from, and when."""

    sha256: str
    """Of the CSV files that the law was fitted to."""
    params: float
    """The most of a fitted run, as are the next two."""
    tokens: float
    flops: float
    code_version: str
    at: str
    """The moment, in UTC."""


@dataclass(frozen=True)
class Run:
    """A run as the CSV of runs has it; what that does not say is empty."""

    line: int
    family: str
    params: float
    tokens: float
    loss: float
    flops: float | None
    code_version: str
    began: str
    ended: str


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
    made: Made | None = None
    """None: the forecast's file does not say."""
    run: Run | None = None

    @property
    def error(self) -> float:
        """Relative error of the forecast, once the loss is measured."""
        assert self.measured is not None
        return self.loss / self.measured - 1

    def sentence(self) -> str:
        """Return a sentence that compares the forecast with the run."""
        model = f"{self.family} of {large(self.params)} parameters on {large(self.tokens)} tokens"
        said = f"{model} was forecast to reach {ranged(self.loss, self.interval)}"
        if self.made is not None:
            most = (large(self.made.params), large(self.made.tokens), scientific(self.made.flops))
            said += " by runs of at most {} parameters, {} tokens and {} FLOPs".format(*most)
        if self.measured is None:
            return f"{said}; it has not been run."
        inside = self.interval is not None and self.interval[0] <= self.measured <= self.interval[1]
        met = "met" if abs(self.error) <= CLOSE else f"missed, for more than {CLOSE:.1%} was off"
        where = "" if self.interval is None else f", {'in' if inside else 'out'}side the interval"
        came = f"{said} and came to {self.measured:.3f}, {self.error:+.2%} off{where}: {met}"
        return f"{came}. {self._order()}."

    def _order(self) -> str:
        """Return which came first, the forecast or the run, as far as their files show it."""
        made, run = self.made, self.run
        if made is None or run is None or not made.at or not run.ended:
            return "Their files do not show whether the forecast was made before the run"
        code = f" with the code {run.code_version}" if run.code_version else ""
        forecast = f"The forecast was made at {made.at} with the code {made.code_version}"
        if run.began and made.at <= run.began:
            return f"{forecast}, before the run began at {run.began}{code}"
        return f"{forecast}, before the run ended at {run.ended}{code} but not before it began"


def read_forecasts(forecast: Path, runs: Path | None, unit: str | None = None) -> list[Forecast]:
    """Read the forecasts of an earlier report, with the losses that their runs reached.

    Args:
        forecast: extrapolation.csv of that report.
        runs: CSV with the columns of :data:`RUN_COLUMNS`, such as runs.csv of a sweep; None: not
            run yet.
        unit: unit of the losses in ``runs``, see :func:`~gam_scale.scaling.runs_csv.read_csv`;
            forecasts are in nats.

    Raises:
        UserError: a file is not valid, or a run fits no forecast, or one that already has a run; or
            the forecast's law was fitted to runs as large and as long; or it was made after the run
            had ended.
    """
    forecasts = _read(forecast)
    for run in _runs(runs, unit) if runs is not None else ():
        of_it = [
            (abs(f.params / run.params - 1) + abs(f.tokens / run.tokens - 1), i)
            for i, f in enumerate(forecasts)
            if f.family == run.family
            and _near(f.params, run.params)
            and _near(f.tokens, run.tokens)
        ]
        if not of_it:
            raise UserError(
                f"{runs}: line {run.line} is a {run.family} of {large(run.params)} parameters on "
                f"{large(run.tokens)} tokens, which {forecast} does not forecast; expected runs of "
                "its models alone"
            )
        _, nearest = min(of_it)
        if forecasts[nearest].measured is not None:
            raise UserError(
                f"{runs}: line {run.line} is a second run of one forecast; expected one run of each"
            )
        if (made := forecasts[nearest].made) is not None:
            _check_order(f"{runs}: line {run.line}", run, made)
        forecasts[nearest] = replace(forecasts[nearest], measured=run.loss, run=run)
    return forecasts


def _check_order(where: str, run: Run, made: Made) -> None:
    """Refuse a run that the forecast's law may have been fitted to, or that ended before it."""
    within = run.params <= made.params * (1 + NEAR) and run.tokens <= made.tokens * (1 + NEAR)
    if within and (run.flops is None or run.flops <= made.flops * (1 + NEAR)):
        raise UserError(
            f"{where} is within the runs that its forecast was fitted to ({large(made.params)} "
            f"parameters, {large(made.tokens)} tokens and {scientific(made.flops)} FLOPs at most); "
            "expected a larger or longer run"
        )
    if made.at and run.ended and run.ended <= made.at:
        raise UserError(
            f"{where} ended at {run.ended}, before its forecast was made at {made.at}; expected a "
            "run that ended later"
        )


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
        "Nats per token; the interval is of one run's loss: that of the law and the scatter of "
        "runs around it."
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
        made = _made(path, line, row)
        forecasts.append(Forecast(family, params, tokens, loss, interval, made=made))
    if not forecasts:
        raise UserError(f"{path} forecasts nothing; expected {REPORT}")
    return forecasts


def _made(path: Path, line: int, row: dict[str, str]) -> Made | None:
    """Return what a forecast was made from; None for the file of an earlier version."""
    digest, *most = FITTED_COLUMNS
    if not all(row.get(name) for name in FITTED_COLUMNS):
        return None
    params, tokens, flops = (read_number(path, line, name, row[name]) for name in most)
    code, made = MADE_COLUMNS
    at = read_moment(path, line, made, row.get(made))
    return Made(row[digest], params, tokens, flops, row.get(code) or "", at)


def _runs(path: Path, unit: str | None) -> list[Run]:
    rows = read_table(path, RUN_COLUMNS)
    losses = in_nats(rows, [read_number(path, i, "loss", row["loss"]) for _, i, row in rows], unit)
    runs = []
    for (_, line, row), loss in zip(rows, losses, strict=True):
        n, d = (read_number(path, line, name, row[name]) for name in RUN_COLUMNS[1:3])
        flops = read_number(path, line, "flops", row["flops"]) if row.get("flops") else None
        began, ended = (read_moment(path, line, name, row.get(name)) for name in OPTIONAL[1:])
        family, code = read_text(path, line, "family", row["family"]), row.get(OPTIONAL[0]) or ""
        runs.append(Run(line, family, n, d, loss, flops, code, began, ended))
    return runs


def _near(a: float, b: float) -> bool:
    return abs(a / b - 1) <= NEAR
