"""Intervals hold the truth as often as they say."""

import numpy as np
import pytest
from closeness import least
from scaling.synthetic import TRUE, runs

from gam_scale.scaling.analysis import Settings, analyse
from gam_scale.scaling.bootstrap import Bootstrap, bootstrap, draw_weights, expanded_tail
from gam_scale.scaling.coverage import coverage, isoflop_grid, tokens_grid
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.law import COEFFICIENTS


def test_known_coefficients_lie_in_the_intervals() -> None:
    settings = Settings(FitSettings(grid=3), resamples=300)
    (family,) = analyse(runs(noise=0.005, seed=11), settings).families
    for name in COEFFICIENTS:
        low, high = family.intervals[name]
        assert low <= getattr(TRUE, name) <= high
    low, high = family.intervals["a"]
    assert low <= 0.28 / 0.62 <= high


def test_coverage_is_nominal() -> None:
    """With 30 data sets, a rate of 0.95 gives fewer than 25 hits once in 300 times.

    ``python -m gam_scale.scaling.coverage`` measures it more closely.
    """
    shares = coverage(sets=30, grid=tokens_grid(5, 4), noise=0.005, resamples=100)
    assert set(shares) >= {*COEFFICIENTS, "a", "loss at 7B"}
    assert least(shares.values()) > 0.8


def test_coverage_is_nominal_where_budgets_are_flops() -> None:
    shares = coverage(sets=20, grid=isoflop_grid(5, 3), noise=0.005, resamples=100)
    assert set(shares) == {*COEFFICIENTS, "a", "loss at 7B", "a (isoFLOP)"}
    assert least(shares.values()) > 0.7


@pytest.mark.coverage
@pytest.mark.parametrize("noise", [0.002, 0.01])
@pytest.mark.parametrize("kind", [tokens_grid, isoflop_grid])
def test_coverage_is_nominal_to_a_few_in_a_hundred(kind, noise) -> None:
    """At a rate of 0.95, fewer than 89 of 100 intervals hold the truth once in 100 times."""
    shares = coverage(sets=100, grid=kind(5, 4), noise=noise, resamples=400, seed=1000)
    assert least(shares.values()) >= 0.89


def test_less_noise_makes_narrower_intervals() -> None:
    widths = []
    for noise in (0.002, 0.02):
        points = runs(noise=noise, seed=5)
        refits = bootstrap(fit(points, FitSettings(grid=3)), 1e-3, points.run, 200)
        low, high = refits.interval(lambda law: law.alpha)
        widths.append(high - low)
    assert widths[0] < 0.3 * widths[1]


def test_rows_of_a_run_are_weighted_together() -> None:
    run = np.array([0, 0, 1, 1, 2, 3])
    family = np.array([0, 0, 0, 0, 1, 1])
    weights = draw_weights(run, family, 200, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert not np.allclose(weights[:, 1], weights[:, 2])
    assert weights[:, :4].mean(axis=1) == pytest.approx(np.ones(200))
    assert weights[:, 4:].mean(axis=1) == pytest.approx(np.ones(200))
    assert (weights == draw_weights(run, family, 200, seed=0)).all()


def test_tails_allow_for_few_runs() -> None:
    assert expanded_tail(0.025, 10_000) == pytest.approx(0.025, rel=0.01)
    # Student's t with 7 degrees: 2.3646; Phi(-2.3646 sqrt(8 / 7)) = 0.00574.
    assert expanded_tail(0.025, 7) == pytest.approx(0.00574, rel=0.02)


def test_no_interval_where_refits_often_have_no_value() -> None:
    refits = Bootstrap([], np.zeros(0), 20)
    values = np.linspace(0, 1, 200)
    assert refits.between(values) is not None
    values[:10] = np.nan
    assert refits.between(values) is None
    assert Bootstrap([], np.zeros(0), 20).interval(lambda law: law.E) is None
