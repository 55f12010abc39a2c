"""A loss predicted before a run is shown beside the loss that the run came to."""

import hashlib
import math
import re
from pathlib import Path

import pytest
from scaling.synthetic import TRUE, runs
from scaling.test_report import FAST, run_tool

from gam_scale.errors import UserError
from gam_scale.experiment.code_version import code_version
from gam_scale.scaling.bootstrap import bootstrap
from gam_scale.scaling.extrapolation import predict
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.forecasts import Forecast, read_forecasts
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.verdict import scatter

HEADER = "family,tokens_by,params,tokens,loss,loss_run_low,loss_run_high"
MODEL = 1e10, 2e11


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_report_forecasts_and_a_later_one_has_what_came_of_it(tmp_path) -> None:
    points = runs()
    columns = points.params, points.tokens, points.loss
    rows = [f"{n},{d},{loss},gam" for n, d, loss in zip(*columns, strict=True)]
    csv = written(tmp_path / "runs.csv", "params,tokens,loss,family", *rows)
    model = "gam:{:g},{:g}".format(*MODEL)
    done = run_tool("--csv", csv, "--out", tmp_path / "before", "--at", model, *FAST)
    assert done.returncode == 0, done.stderr
    forecast = tmp_path / "before" / "extrapolation.csv"
    (predicted,) = read_forecasts(forecast, None)
    assert predicted.measured is None and (predicted.params, predicted.tokens) == MODEL
    assert predicted.interval[0] < predicted.loss < predicted.interval[1]
    assert predicted.made.sha256 == hashlib.sha256(csv.read_bytes()).hexdigest()
    assert predicted.made.params == points.params.max()
    assert (predicted.made.tokens, predicted.made.flops) == (
        points.tokens.max(),
        points.flops.max(),
    )
    assert predicted.made.code_version == code_version() and predicted.made.at
    came = written(tmp_path / "ten.csv", HEADER.replace("tokens_by,", ""), f"gam,1.01e10,2e11,{2}")
    more = ["--forecast", forecast, "--forecast-runs", came]
    done = run_tool("--csv", csv, "--out", tmp_path / "after", *more, *FAST)
    assert done.returncode == 0, done.stderr
    off = f"{predicted.loss / 2 - 1:+.2%} off"
    for text in (done.stdout, (tmp_path / "after" / "report.md").read_text().replace("\\", "")):
        assert f"and came to 2.000, {off}, outside the interval: missed" in text
    assert "## Forecasts" in text and forecast.exists()
    assert "Their files do not show whether the forecast was made before the run." in text


def test_a_run_is_that_of_the_nearest_forecast(tmp_path) -> None:
    """The two forecasts are within 2% of each other, and their runs come in the other order."""
    lines = [f"gam,asked,1e9,{tokens},{loss},," for tokens, loss in (("1e10", 3), ("1.015e10", 2))]
    forecast = written(tmp_path / "f.csv", HEADER, *lines)
    rows = "gam,1e9,1.014e10,2.01", "gam,1e9,1e10,3.01"
    came = written(tmp_path / "r.csv", "family,params,tokens,loss", *rows)
    assert [f.measured for f in read_forecasts(forecast, came)] == [3.01, 2.01]


def test_runs_have_the_unit_that_is_said(tmp_path) -> None:
    """Forecasts are in nats; bits or perplexities taken for nats would miss by 44% or more."""
    forecast = written(tmp_path / "f.csv", HEADER, "gam,asked,1e9,1e10,3,,")
    for unit, loss in (("bits", 3 / math.log(2)), ("perplexity", math.exp(3)), ("nats", 3.0)):
        came = written(tmp_path / "r.csv", "family,params,tokens,loss", f"gam,1e9,1e10,{loss}")
        (found,) = read_forecasts(forecast, came, unit)
        assert found.measured == pytest.approx(3.0)
    came = written(tmp_path / "r.csv", "family,params,tokens,loss", "gam,1e9,1e10,20.1")
    with pytest.raises(UserError, match="line 2, column loss is 20.1, more nats per token"):
        read_forecasts(forecast, came)


def test_a_forecast_is_met_to_half_a_percent() -> None:
    forecast = Forecast("gam", 1e9, 2e10, 3.0, (2.97, 3.03), 3.01)
    assert " and came to 3.010, -0.33% off, inside the interval: met. " in forecast.sentence()
    none = Forecast("gam", 1e9, 2e10, 3.0, None)
    assert none.sentence().endswith("was forecast to reach 3.000; it has not been run.")


MADE = "runs_sha256,largest_params,largest_tokens,largest_flops,code_version,made"
RUNS = "family,params,tokens,loss,flops,code_version,began,ended"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ("1e9,2e10,3,1.2e20,b,2026-01-03T00:00:00Z,2026-01-04T00:00:00Z", "before the run began"),
        ("1e9,2e10,3,1.2e20,b,2026-01-01T00:00:00Z,2026-01-04T00:00:00Z", "not before it began"),
        ("1e9,2e10,3,1.2e20,b,,", "do not show whether the forecast was made before"),
    ],
)
def test_a_sentence_says_which_came_first_as_far_as_is_known(tmp_path, run, said) -> None:
    stands = "abc,1e8,1e10,1e19,a,2026-01-02T00:00:00Z"
    forecast = written(tmp_path / "f.csv", f"{HEADER},{MADE}", f"gam,asked,1e9,2e10,3,,,{stands}")
    (found,) = read_forecasts(forecast, written(tmp_path / "r.csv", RUNS, f"gam,{run}"))
    assert said in found.sentence() and "by runs of at most 100M parameters" in found.sentence()
    assert ("before the run began" in found.sentence()) == (said == "before the run began")


@pytest.mark.parametrize(
    ("largest", "run", "message"),
    [
        ("1e9,2e10,1.2e20", "1e9,2e10,3,1.2e20,b,,", "is within the runs that its forecast was"),
        ("1e9,2e10,1e19", "1e9,2e10,3,,b,,", "is within the runs that its forecast was"),
        (
            "1e8,1e10,1e19",
            "1e9,2e10,3,1.2e20,b,,2026-01-01T00:00:00Z",
            "ended at 2026-01-01T00:00:00Z, before its forecast was made at 2026-01-02",
        ),
        ("1e8,1e10,1e19", "1e9,2e10,3,1.2e20,b,,yesterday", 'column ended is "yesterday"'),
    ],
)
def test_a_forecast_of_a_run_that_was_known_is_refused(tmp_path, largest, run, message) -> None:
    stands = f"abc,{largest},a,2026-01-02T00:00:00Z"
    forecast = written(tmp_path / "f.csv", f"{HEADER},{MADE}", f"gam,asked,1e9,2e10,3,,,{stands}")
    came = written(tmp_path / "r.csv", RUNS, f"gam,{run}")
    with pytest.raises(UserError, match=re.escape(f"{came}: line 2") + ".*" + re.escape(message)):
        read_forecasts(forecast, came)


def test_the_interval_is_of_one_run() -> None:
    """Of 20 intervals from noisy runs, about 19 hold another noisy run far beyond those."""
    inside, noise = 0, 0.01
    for seed in range(20):
        points = runs(noise=noise, seed=seed)
        best = fit(points, FitSettings(grid=2))
        refits = bootstrap(best, FitSettings().delta, points.run, 100, seed)
        said = predict(*MODEL, Optimum(best.law, 6.0), refits, scatter=scatter(best))
        (sign,) = runs(noise=noise, seed=100 + seed, sizes=1, budgets=1).loss / TRUE.loss(1e6, 1e8)
        low, high = said.loss_run_interval
        assert low < said.loss_interval[0] and said.loss_interval[1] < high
        inside += low <= float(TRUE.loss(*MODEL)) * sign <= high
    assert 17 <= inside <= 20


@pytest.mark.parametrize(
    ("rows", "runs_rows", "message"),
    [
        (["gam,optimal,1,2,3,,"], [], "forecasts nothing"),
        (["gam,asked,1e6,2e7,x,,"], [], "line 2, column loss is 'x'"),
        (["gam,asked,1e6,2e7,3,,"], ["gam,2e6,2e7,3"], "does not forecast"),
        (["gam,asked,1e6,2e7,3,,"], ["other,1e6,2e7,3"], "does not forecast"),
        (["gam,asked,1e6,2e7,3,,"], ["gam,1e6,2e7,3"] * 2, "line 3 is a second run"),
    ],
)
def test_mistakes_are_named(tmp_path, rows, runs_rows, message) -> None:
    forecast = written(tmp_path / "f.csv", HEADER, *rows)
    came = written(tmp_path / "r.csv", "family,params,tokens,loss", *runs_rows)
    with pytest.raises(UserError, match=re.escape(message)):
        read_forecasts(forecast, came if runs_rows else None)
    with pytest.raises(UserError, match="no column tokens_by"):
        read_forecasts(came, None)
