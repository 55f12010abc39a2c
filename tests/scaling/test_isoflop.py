"""Best sizes read off the runs of one budget."""

import numpy as np
import pytest
from scaling.synthetic import TRUE, isoflop_runs, runs

from gam_scale.scaling.bootstrap import bootstrap
from gam_scale.scaling.budgets import budgets
from gam_scale.scaling.coverage import isoflop_grid
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.isoflop import IsoFlop, isoflop
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import Points, from_arrays

EXPONENT = Optimum(TRUE, 6.0).a


def with_law(points: Points, resamples: int = 200) -> IsoFlop:
    fitted = fit(points, FitSettings(grid=3))
    return isoflop(points, fitted, bootstrap(fitted, 1e-3, points.run, resamples))


def grid(sizes: np.ndarray, budgets: np.ndarray, noise: float = 0.0) -> Points:
    n, c = (axis.ravel() for axis in np.meshgrid(sizes, budgets))
    error = noise * np.random.default_rng(0).standard_normal(len(n))
    d = c / (6 * n)
    return from_arrays(n, d, TRUE.loss(n, d) * np.exp(error))


def test_parabolas_find_the_minima() -> None:
    found = with_law(isoflop_runs(noise=0.003))
    assert len(found.minima) == 5 and found.note == ""
    assert found.a == pytest.approx(EXPONENT, abs=0.03) and found.a + found.b == pytest.approx(1)
    low, high = found.a_interval
    assert low <= EXPONENT <= high and low < found.a < high
    best = Optimum(TRUE, 6.0)
    for parabola in found.minima:
        assert parabola.params == pytest.approx(float(best.params(parabola.flops)), rel=0.3)


def test_the_bias_of_sizes_shared_by_all_budgets_is_taken_off() -> None:
    """The runs are those of a sweep of kind isoflop; without noise the bias is the only error."""
    points = isoflop_grid(5, 3)
    plain, corrected = isoflop(points), with_law(points)
    assert abs(plain.a - EXPONENT) > 0.004
    assert corrected.a == pytest.approx(EXPONENT, abs=1e-3)
    assert corrected.bias == pytest.approx(plain.a - EXPONENT, abs=1e-3)


def test_a_parabola_goes_through_the_sizes_nearest_the_least_loss() -> None:
    points = grid(np.geomspace(1e6, 1e10, 13), np.array([1e18]))
    (parabola,) = isoflop(points).parabolas
    least = float(points.params[points.loss.argmin()])
    assert parabola.low == pytest.approx(least / 10 ** (2 / 3))
    assert parabola.high == pytest.approx(least * 10 ** (2 / 3))
    (best,) = (float(Optimum(TRUE, 6.0).params(c)) for c in (1e18,))
    assert parabola.params == pytest.approx(best, rel=0.05)


def test_a_minimum_between_the_sizes_is_found_where_five_of_them_miss_it() -> None:
    n = np.geomspace(1e6, 16e6, 5)
    loss = np.array([3.01, 3.0, 3.5, 4.0, 4.5])  # through all five, the minimum is at 6e5
    (parabola,) = isoflop(from_arrays(n, 1e15 / (6 * n), loss)).parabolas
    assert parabola.is_inside and 1e6 < parabola.params < 4e6


def test_a_minimum_is_found_where_sizes_are_dense_on_one_side_of_it() -> None:
    """The least loss is at the second of six sizes; the first is further off than all others."""
    x = np.array([0.0, 3.0, 3.5, 4.0, 4.5, 5.0])
    loss = [3 + 0.05 * (x - 2.5 - 0.5 * i) ** 2 for i in range(2)]
    n, c = np.tile(1e6 * np.exp(x), 2), np.repeat([1e15, 1e16], 6)
    found = isoflop(from_arrays(n, c / (6 * n), np.concatenate(loss), budget=c))
    best = [np.log(parabola.params / 1e6) for parabola in found.minima]
    assert best == pytest.approx([2.5, 3.0])
    assert found.a == pytest.approx(0.5 / np.log(10))


def test_minima_beyond_the_sizes_do_not_count() -> None:
    points = isoflop_runs(noise=0.0)
    best = Optimum(TRUE, 6.0).params(points.flops)
    found = isoflop(grid(np.geomspace(1, 8, 5) * best.max() * 2, np.geomspace(1e17, 1e18, 3)))
    assert found.minima == [] and found.a is None
    assert "3 of 3 budgets have no minimum between the sizes" in found.note


def test_sizes_within_a_factor_of_four_have_no_parabola() -> None:
    best = float(Optimum(TRUE, 6.0).params(1e18))
    found = isoflop(grid(best * np.geomspace(0.6, 1.7, 6), np.geomspace(5e17, 2e18, 3)))
    assert found.parabolas == [] and "within a factor of 4" in found.note


def test_without_equal_budgets_there_are_no_parabolas() -> None:
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.integers(12, 18, 500) ** 0.5, 10 ** rng.uniform(8, 10, 500)
    for points in (runs(sizes=4, budgets=4), runs(sizes=7, budgets=9), from_arrays(n, d, 1 / n)):
        found = isoflop(points)
        assert found.parabolas == [] and "equal FLOPs" in found.note


def test_without_a_law_there_is_no_interval_and_the_reason_is_said() -> None:
    found = isoflop(isoflop_runs())
    assert found.a == pytest.approx(EXPONENT, abs=0.03) and found.bias is None
    assert found.a_interval is None and "no interval: that takes a law" in found.note


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.2])
def test_budgets_are_found_though_runs_spend_more_or_less(spread) -> None:
    rng = np.random.default_rng(1)
    planned = np.repeat([1e18, 3e18, 1e19], 7)
    flops = planned * (1 + spread * rng.uniform(-0.5, 0.5, len(planned)))
    n = np.tile(np.geomspace(1e7, 1e9, 7), 3)
    order = rng.permutation(len(n))
    points = from_arrays(n[order], (flops / (6 * n))[order], np.ones(21), flops[order])
    found = [set(planned[order][rows]) for rows in budgets(points)]
    assert found == [{1e18}, {3e18}, {1e19}]
    assert sum(map(len, budgets(points))) == 21


def test_two_budgets_that_are_near_are_two() -> None:
    n = np.tile(np.geomspace(1e7, 1e9, 5), 2)
    flops = np.repeat([1e18, 1.15e18], 5)
    assert [len(rows) for rows in budgets(from_arrays(n, flops / (6 * n), n, flops))] == [5, 5]


def test_planned_budgets_are_those_of_their_column() -> None:
    n = np.tile(np.geomspace(1e7, 1e9, 5), 2)
    planned = np.repeat([1e18, 1.5e18], 5)
    flops = planned * np.tile([0.8, 1.2, 1.0, 1.1, 0.9], 2)
    points = from_arrays(n, flops / (6 * n), n, flops, budget=planned)
    assert [rows.tolist() for rows in budgets(points)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert [len(rows) for rows in budgets(points.take(np.arange(9)))] == [5, 4]
