"""Runs that do not show an exponent have no law, and runs far from a law do not follow it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scaling.synthetic import TRUE, runs

from gam_scale.errors import UserError
from gam_scale.scaling.analysis import Settings, analyse
from gam_scale.scaling.fit import FitSettings, fit
from gam_scale.scaling.fit_json import as_dict
from gam_scale.scaling.holdout import hold_out
from gam_scale.scaling.law import Law
from gam_scale.scaling.points import Points, from_arrays
from gam_scale.scaling.runs_csv import read_csv
from gam_scale.scaling.trend import trend_with_size
from gam_scale.scaling.verdict import Verdict, find_outliers, judge

FAST = FitSettings(grid=3)
SWEEP = Path(__file__).parents[2] / "docs" / "scaling" / "sweep" / "runs.csv"


def no_law(kind: str, noise: float) -> Points:
    points = runs(noise=0.0)
    n, d = points.params, points.tokens
    size, data = 400 / n**0.34, 400 / d**0.28
    loss = {
        "no size": 2 + data,
        "no data": 2 + size,
        "a step in size": 2 + data + 0.5 * (n == n.min()),
        "a step in data": 2 + size + 0.5 * (d == d.min()),
        "size hurts": 2 + data + (n / 1e9) ** 0.2,
        "data hurts": 2 + size + (d / 1e11) ** 0.2,
    }[kind]
    error = noise * np.random.default_rng(0).standard_normal(len(n))
    return from_arrays(n, d, loss * np.exp(error))


@pytest.mark.parametrize("noise", [0.0, 0.003])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no size", "loss (does not fall|falls) as params grow"),
        ("no data", "loss (does not fall|falls) as tokens grow"),
        ("a step in size", "what size adds ends within the runs"),
        ("a step in data", "what data adds ends within the runs"),
        ("size hurts", "loss does not fall as params grow"),
        ("data hurts", "loss does not fall as tokens grow"),
    ],
)
def test_runs_that_do_not_show_an_exponent_have_no_law(kind, reason, noise) -> None:
    points = no_law(kind, noise)
    reasons = set()
    for other in (points, *other_machines(points)):
        # Noise may be taken for a step, too, so with noise any of the reasons is right.
        wanted = f".*{reason}" if noise == 0 else "(the runs do not|the loss does not|what)"
        with pytest.raises(UserError, match=f"^the runs: {wanted}") as refused:
            analyse(other, Settings(FAST, resamples=100))
        reasons.add(str(refused.value))
    assert len(reasons) == 1


def other_machines(points: Points) -> list[Points]:
    """Return the runs as another processor might round them, and in another order of rows."""
    rng = np.random.default_rng(1)
    shaken = replace(points, loss=points.loss * (1 + 1e-13 * rng.standard_normal(len(points))))
    return [shaken, points.take(rng.permutation(len(points)))]


def test_the_verdict_on_the_published_sweep_is_one_on_every_machine() -> None:
    """Two of its families have sizes that had hardly begun to learn."""
    points = read_csv(SWEEP)
    settings = Settings(FAST, resamples=100, draws=0)
    results = [analyse(p, settings) for p in (points, *other_machines(points)[:1])]
    for result in results:
        json.dumps(as_dict(result), allow_nan=False)
    first, second = ({f.name: f for f in r.families} for r in results)
    assert list(first) == list(second)
    assert [left.reason for left in results[0].left_out] == [
        left.reason for left in results[1].left_out
    ]
    for name, family in first.items():
        assert family.verdict.reasons == second[name].verdict.reasons
        assert family.fit.law.as_dict() == pytest.approx(second[name].fit.law.as_dict(), rel=1e-4)


def test_every_number_is_finite_where_e_is_nothing() -> None:
    points = runs(noise=0.0)
    powers = from_arrays(points.params, points.tokens, points.loss - 1.699)
    (family,) = analyse(powers, Settings(FAST, resamples=100)).families
    assert family.fit.law.E < 0.01
    noisy = replace(powers, loss=powers.loss * np.exp(0.02 * np.sin(np.arange(len(powers)))))
    json.dumps(as_dict(analyse(noisy, Settings(FAST, resamples=100))), allow_nan=False)


def verdict(points: Points) -> Verdict:
    return judge(fit(points, FAST), points, FAST)


def test_good_runs_follow() -> None:
    found = verdict(runs())
    assert found.follows and found.without is None and len(found.outliers) == 0


def test_runs_far_from_the_law_do_not_follow_it() -> None:
    signs = np.random.default_rng(0).choice([-1, 1], 30)
    points = runs(noise=0.0)
    (reason,) = verdict(replace(points, loss=points.loss * (1 + 0.03 * signs))).reasons
    assert reason.startswith("the mean error is 2.") and reason.endswith("above 2%")


def test_outliers_are_named_with_the_law_of_the_others() -> None:
    points = runs(noise=0.002)
    points.loss[[7, 20]] *= [1.2, 1.03]
    found = verdict(points)
    assert found.outliers.tolist() == [7, 20]
    (reason,) = found.reasons
    assert reason.startswith("the largest error is 1") and reason.endswith("above 10%")
    rest = fit(points.take(~np.isin(np.arange(30), [7, 20])), FAST)
    assert found.without == rest.law
    assert found.without.alpha == pytest.approx(TRUE.alpha, abs=0.02)


def test_outliers_that_alone_have_an_effect_of_size_leave_no_law() -> None:
    points = no_law("no size", noise=0.0)
    (smallest,) = np.nonzero(points.params == points.params.min())
    points.loss[smallest[:2]] *= 1.13
    found = verdict(points)
    assert found.outliers.tolist() == smallest[:2].tolist() and found.without is None


def test_exact_runs_have_no_outliers() -> None:
    points = runs(noise=0.0)
    assert find_outliers(fit(points, FAST)).tolist() == []
    assert verdict(points).trend == 1.0


def test_errors_that_run_with_size_are_told_from_noise() -> None:
    """By chance, more than 2 of 30 sets of good runs have p <= 0.01 once in 250 times."""
    size = np.log(runs().params / 3e7) / 7
    alarms = 0
    for seed in range(30):
        points = runs(noise=0.004, seed=seed, sizes=6)
        fitted = fit(points, FitSettings(grid=2))
        alarms += trend_with_size(fitted, points.run, seed) <= 0.01
    assert alarms <= 2
    bent = replace(points, loss=points.loss * np.exp(0.3 * size**3))
    (reason,) = verdict(bent).reasons
    assert reason.startswith("the errors run with size (p = 0.00")


def sweep_runs(bend: float, seed: int) -> Points:
    """Return runs as configs/sweeps/laws.json has of a family: 15 losses of 7 runs, noise of 0.1%.

    Half of the noise's variance is shared by the rows of a run. The loss of the smallest and the
    largest size is off by the share ``bend``, with opposite signs.
    """
    sizes = {32: 192e3, 64: 501e3, 96: 918e3, 128: 1.46e6, 160: 2.48e6}
    rng = np.random.default_rng(seed)
    rows = []
    for width, again in ((32, 0), (64, 0), (96, 0), (96, 1), (96, 2), (128, 0), (160, 0)):
        shared = rng.standard_normal()
        for budget in (7e12, 1.8e13, 4.5e13):
            n = sizes[width]
            d = budget / 6.4 / n
            too_dear = again and budget > 2e13
            if 1 <= d / n <= 100 and not too_dear:
                noise = 7e-4 * (shared + rng.standard_normal())
                rows.append((n, d, noise, f"d{width}-s{again}"))
    n, d, noise, run = (np.array(column) for column in zip(*rows, strict=True))
    place = 2 * np.log(n / n.min()) / np.log(n.max() / n.min()) - 1
    law = Law(E=2.2, A=60.0, B=1500.0, alpha=0.33, beta=0.5)
    return from_arrays(n, d, law.loss(n, d) * np.exp(noise + bend * place**3), run=run.tolist())


@pytest.mark.parametrize(("bend", "least", "most"), [(0.0, 0, 2), (0.01, 11, 20), (0.03, 18, 20)])
def test_a_bend_shows_in_a_sweep_of_seven_runs(bend, least, most) -> None:
    found = 0
    for seed in range(20):
        points = sweep_runs(bend, seed)
        assert len(np.unique(points.run)) == 7 and len(points) == 15
        found += trend_with_size(fit(points, FitSettings(grid=2)), points.run, seed) <= 0.01
    assert least <= found <= most


def test_a_large_error_on_runs_held_out_is_a_reason() -> None:
    """Runs whose law breaks off at the largest sizes: the others do not predict them."""
    points = runs(noise=0.002)
    far = points.params > 1e8
    bent = replace(points, loss=points.loss * np.where(far, 1.035, 1.0))
    held, _ = hold_out(bent, FAST)
    assert held.mean_error > 0.02
    judged = judge(fit(bent, FAST), bent, FAST, held_out=held)
    assert any(
        reason.startswith("fitted without the largest models the law is off by 3.")
        for reason in judged.reasons
    )
    good, _ = hold_out(points, FAST)
    assert judge(fit(points, FAST), points, FAST, held_out=good).follows


def test_noise_that_rows_of_a_run_share_is_no_trend() -> None:
    """Six sizes of one run each: by independent rows, most of these sets would have a bend."""
    points, alarms = runs(noise=0.0), 0
    _, run = np.unique(points.params, return_inverse=True)
    for seed in range(15):
        rng = np.random.default_rng(seed)
        noise = 0.001 * rng.standard_normal(6)[run] + 0.0003 * rng.standard_normal(len(points))
        shared = from_arrays(
            points.params, points.tokens, points.loss * np.exp(noise), run=run.tolist()
        )
        alarms += trend_with_size(fit(shared, FitSettings(grid=2)), shared.run, seed) <= 0.01
    assert alarms <= 3
