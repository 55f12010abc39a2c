"""The descent ends at the law that the runs follow."""

import numpy as np
import pytest
from scaling.synthetic import TRUE, runs

from gam_scale.errors import UserError
from gam_scale.scaling.descent import minimise
from gam_scale.scaling.fit import FitSettings, descend, design, fit, starts
from gam_scale.scaling.law import COEFFICIENTS, Design, Law
from gam_scale.scaling.points import Points


def two_families() -> Points:
    a, b = runs(seed=1, sizes=4, budgets=3), runs(seed=2, sizes=5, budgets=3)
    arrays = [
        np.concatenate(pair)
        for pair in zip(
            (a.params, a.tokens, a.loss, a.flops),
            (b.params, b.tokens, b.loss, b.flops),
            strict=True,
        )
    ]
    return Points(*arrays, ("a",) * len(a) + ("b",) * len(b), np.arange(len(a) + len(b)))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("common", [(), ("alpha", "beta"), COEFFICIENTS])
@pytest.mark.parametrize("delta", [1e-3, 1.0])
def test_gradients_are_those_of_finite_differences(shared, common, delta) -> None:
    made = design(two_families(), FitSettings(shared_exponent=shared), common)
    rng = np.random.default_rng(0)
    phi = starts(made, 1) + 0.1 * rng.standard_normal((1, made.n_free))
    weights = rng.exponential(size=(1, len(made.loss)))
    _, gradient = made.objective(phi, delta, weights)
    for i in range(made.n_free):
        step = np.zeros_like(phi)
        step[0, i] = 1e-6
        up, _ = made.objective(phi + step, delta, weights)
        down, _ = made.objective(phi - step, delta, weights)
        assert (up - down)[0] / 2e-6 == pytest.approx(gradient[0, i], rel=1e-5, abs=1e-9)


def test_objective_is_the_sum_of_the_published_one() -> None:
    points = runs(noise=0.01)
    made = design(points, FitSettings())
    law = Law(1.5, 300.0, 500.0, 0.3, 0.3)
    r = np.log(law.loss(points.params, points.tokens)) - np.log(points.loss)
    huber = np.where(np.abs(r) <= 1e-3, r**2 / 2, 1e-3 * (np.abs(r) - 5e-4))
    value, _ = made.objective(made.phi([law])[None], 1e-3)
    assert value[0] == pytest.approx(huber.sum(), rel=1e-9)
    assert made.laws(made.phi([law]))[0].as_dict() == pytest.approx(law.as_dict())


def test_exact_data_gives_the_law_back() -> None:
    found = fit(runs(noise=0.0), FitSettings(grid=3))
    assert found.law.as_dict() == pytest.approx(TRUE.as_dict(), rel=1e-6)
    assert found.starts_at_minimum == found.starts == 27
    assert found.warnings == []


def test_every_start_ends_at_the_minimum() -> None:
    """A mean-reduced loss with a loose tolerance would stop early (arXiv 2404.10102, section 3)."""
    points = runs(noise=0.01, seed=3)
    settings = FitSettings()
    made = design(points, settings)
    end = descend(made, settings.delta, starts(made, 4))
    assert end.finished.all()
    assert end.value.max() == pytest.approx(end.value.min(), rel=1e-6)
    best = fit(points, settings)
    rng = np.random.default_rng(0)
    near = best.phi + 1e-3 * rng.standard_normal((200, made.n_free))
    assert made.objective(near, settings.delta)[0].min() > best.objective


def test_an_outlier_hardly_moves_the_law() -> None:
    points = runs(noise=0.0)
    points.loss[7] *= 1.5
    assert fit(points, FitSettings(grid=3)).law.alpha == pytest.approx(TRUE.alpha, rel=1e-3)
    squares = fit(points, FitSettings(grid=3, delta=10.0)).law
    assert abs(squares.alpha - TRUE.alpha) > 0.02


def test_shared_exponents() -> None:
    law = Law(1.7, 200.0, 900.0, 0.31, 0.31)
    found = fit(runs(noise=0.0, law=law), FitSettings(grid=3, shared_exponent=True))
    assert found.law.as_dict() == pytest.approx(law.as_dict(), rel=1e-6)
    free = fit(runs(noise=0.01), FitSettings(grid=3))
    held = fit(runs(noise=0.01), FitSettings(grid=3, shared_exponent=True))
    assert held.law.alpha == held.law.beta
    assert held.objective >= free.objective * (1 - 1e-9)


def test_common_coefficients_are_common() -> None:
    points = two_families()
    one, two = fit(points, FitSettings(grid=2), ("alpha", "beta")).laws
    assert (one.alpha, one.beta) == (two.alpha, two.beta)
    assert abs(one.A - two.A) > 0
    same = fit(points, FitSettings(grid=2), COEFFICIENTS).laws
    assert same[0] == same[1]


@pytest.mark.parametrize(("setting", "value"), [("delta", 0.0), ("grid", 0), ("grid", 99)])
def test_settings_are_checked(setting, value) -> None:
    with pytest.raises(UserError, match="expected"):
        FitSettings(**{setting: value})


def test_bfgs_finds_the_end_of_a_curved_valley() -> None:
    def rosenbrock(x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = x.T
        scale = 10.0**index  # each problem has its own
        value = (1 - a) ** 2 + scale * (b - a**2) ** 2
        slope = [-2 * (1 - a) - 4 * scale * a * (b - a**2), 2 * scale * (b - a**2)]
        return value, np.stack(slope, axis=1)

    end = minimise(rosenbrock, np.tile([-1.2, 1.0], (4, 1)))
    assert end.x == pytest.approx(np.ones((4, 2)), abs=1e-6)
    assert end.finished.all()


def test_a_descent_that_cannot_start_is_left_alone() -> None:
    def nowhere(x: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(x), np.nan), np.full(x.shape, np.nan)

    assert np.isnan(minimise(nowhere, np.ones((1, 2))).value[0])


def test_a_design_counts_its_free_numbers() -> None:
    family = np.array([0, 0, 1])
    three = np.ones(3)
    counts = {(): 10, ("alpha", "beta"): 8, COEFFICIENTS: 5}
    for common, n_free in counts.items():
        assert Design(three, three, three, family, common=common).n_free == n_free
    assert Design(three, three, three, family, shared_exponent=True).n_free == 8
