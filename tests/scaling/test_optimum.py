"""The best use of compute: closed forms, parabolas, predictions of larger models, comparisons."""

from dataclasses import replace

import numpy as np
import pytest
from scaling.synthetic import TRUE, runs

from gam_scale.errors import UserError
from gam_scale.scaling.analysis import Settings, analyse, is_affordable
from gam_scale.scaling.compare import compare
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.fit import FitSettings
from gam_scale.scaling.holdout import hold_out
from gam_scale.scaling.law import Law
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import from_arrays

FAST = FitSettings(grid=3)


def test_the_optimum_is_the_least_loss_of_its_budget() -> None:
    found, flops = Optimum(TRUE, 6.0), 1e21
    n = np.geomspace(1e7, 1e12, 20_001)
    least = n[TRUE.loss(n, flops / (6 * n)).argmin()]
    assert found.params(flops) == pytest.approx(least, rel=1e-3)
    assert 6 * found.params(flops) * found.tokens(flops) == pytest.approx(flops)
    assert found.flops(found.params(flops)) == pytest.approx(flops)
    assert found.a + found.b == pytest.approx(1)
    assert found.params(1e23) / found.params(1e21) == pytest.approx(100**found.a)


def test_the_largest_models_are_predicted() -> None:
    held, note = hold_out(runs(noise=0.002), FAST)
    assert note == ""
    assert held.params.min() > 6e7 and len(held.loss) >= 6
    assert held.mean_error < 0.02
    assert held.predicted == pytest.approx(held.loss, rel=0.03)


def test_a_law_that_breaks_is_seen_when_held_out() -> None:
    points = runs(noise=0.002)
    points.loss[points.params == points.params.max()] *= 1.1
    held, _ = hold_out(points, FAST)
    assert held.bias < -0.03


def test_too_little_to_hold_out_has_a_reason() -> None:
    held, note = hold_out(runs(sizes=3, budgets=3), FAST)
    assert held is None and "has 6 rows" in note


def test_families_of_one_law_are_not_told_apart_and_of_two_are() -> None:
    one = runs(seed=21, sizes=5, budgets=4)
    same = [
        compare(one, runs(seed=s, sizes=5, budgets=4), FitSettings(grid=2), draws=20)
        for s in (22, 25, 26)
    ]
    assert [t.hypothesis for t in same[0]] == ["one law", "equal exponents"]
    for tests in zip(*same, strict=True):  # by chance alone, p < 0.05 once in 20 pairs
        assert np.median([t.p for t in tests]) > 0.05
    scaled = runs(seed=23, sizes=5, budgets=4, law=Law(1.7, 330.0, 410.0, 0.34, 0.28))
    law, exponents = compare(one, scaled, FAST, draws=30)
    assert law.p < 0.05 < exponents.p
    steeper = runs(seed=24, sizes=5, budgets=4, law=Law(1.7, 1600.0, 410.0, 0.43, 0.28))
    assert compare(one, steeper, FAST, draws=30)[1].p < 0.05


def test_a_loss_that_grows_is_refused() -> None:
    points = runs(noise=0.0)
    rising = from_arrays(points.params, points.tokens, 2 + (points.params / 1e9) ** 0.2)
    with pytest.raises(UserError, match="does not fall as params grows"):
        analyse(rising, Settings(FAST, resamples=0))


def test_costs_are_in_gpu_hours() -> None:
    cost = Cost.of(["h100"], 0.5)
    assert cost.hours(989.4e12 * 0.5 * 3600, cost.gpus[0]) == pytest.approx(1)
    with pytest.raises(UserError, match="not in the table"):
        Cost.of(["abacus"], 0.5)
    with pytest.raises(UserError, match="--mfu"):
        Cost.of(["h100"], 0.0)


@pytest.mark.parametrize(("alpha", "A"), [(40.3, 1e193), (73.3, float("inf"))])
def test_no_compute_makes_a_size_the_best_where_size_stopped_to_matter(alpha, A):
    """Where a descent along a flat valley ends depends on the machine; A may overflow."""
    law = Law(E=4.2, A=A, B=224, alpha=alpha, beta=0.4)
    assert not is_affordable(Optimum(law, 6), 1e9)
    assert is_affordable(Optimum(replace(law, A=400.0, alpha=0.34), 6), 1e9)
