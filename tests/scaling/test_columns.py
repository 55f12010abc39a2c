"""Further columns of runs: steps, other counts of N, seeds."""

import numpy as np
import pytest
from scaling.synthetic import TRUE, runs

from gam_scale.errors import UserError
from gam_scale.scaling.analysis import Settings, analyse
from gam_scale.scaling.by_steps import by_steps
from gam_scale.scaling.columns import (
    named_count,
    numeric_column,
    other_counts,
    steps,
    with_min_steps,
)
from gam_scale.scaling.fit import FitSettings
from gam_scale.scaling.holdout import hold_out
from gam_scale.scaling.law import Law
from gam_scale.scaling.names import readable
from gam_scale.scaling.points import Points, from_arrays
from gam_scale.scaling.seeds import seed_spread
from gam_scale.scaling.supplement import Supplement
from gam_scale.scaling.tables import by_count
from gam_scale.scaling.tables import by_steps as steps_table
from gam_scale.scaling.words import does_not_show

FAST = FitSettings(grid=2)


def short_runs() -> Points:
    """Return runs of a known law at 1e6 tokens a step; those under 300 steps are far above it."""
    points = runs(noise=0.0)
    taken = points.tokens / 1e6  # 100 to 20,000
    loss = points.loss * (1 + 0.3 * (taken < 300))
    columns = {"steps": [f"{s:.0f}" for s in taken], "params_with_embedding": points.params * 2}
    columns["params_without_embedding"] = points.params
    texts = {name: [str(cell) for cell in cells] for name, cells in columns.items()}
    return from_arrays(points.params, points.tokens, loss, columns=texts)


def test_steps_are_a_column_or_follow_from_others() -> None:
    points = short_runs()
    assert steps(points)[0] == 100
    columns = {"batch": ["4"] * 30, "seq_len": ["250"] * 30}
    derived = from_arrays(points.params, points.tokens, points.loss, columns=columns)
    np.testing.assert_allclose(steps(derived), points.tokens / 1000)
    assert steps(runs()) is None and by_steps(runs(), FAST) == []
    with pytest.raises(UserError, match="--min-steps needs a column steps"):
        with_min_steps(runs(), 1)
    with pytest.raises(UserError, match="--min-steps is 30000; expected at most 20000"):
        with_min_steps(points, 30000)
    bad = from_arrays([1.0], [1.0], [1.0], columns={"steps": ["x\n"]})
    with pytest.raises(UserError, match="column steps has 'x.*'; expected a number above 0"):
        numeric_column(bad, "steps")


def test_the_law_without_short_runs_is_the_true_one() -> None:
    """Exponents are wrong until runs that have hardly begun to learn are left out."""
    rows = by_steps(short_runs(), FAST)
    assert [row.least for row in rows][:3] == [0, 200, 500] and rows[0].runs == 30
    assert abs(rows[0].law.beta - TRUE.beta) > 0.05
    for row in rows[2:]:
        assert row.law.beta == pytest.approx(TRUE.beta, abs=1e-3)
        assert row.law.alpha == pytest.approx(TRUE.alpha, abs=1e-3)


def test_a_report_leaves_short_runs_out_and_says_so() -> None:
    settings = Settings(FAST, resamples=0, draws=0, min_steps=300, held="none")
    analysis = analyse(short_runs(), settings)
    (family,) = analysis.families
    assert family.fit.law.beta == pytest.approx(TRUE.beta, abs=1e-3)
    assert analysis.too_short == 6 and len(family.points) == 24
    assert [row[1] for row in steps_table(analysis).rows][:2] == ["all runs", "200"]
    # With N counted twice as large, exponents stay and A is 2^alpha times as large.
    counted = family.by_count["params_with_embedding"].law
    assert pytest.approx(2**TRUE.alpha, rel=1e-3) == counted.A / family.fit.law.A
    names = [row[1] for row in by_count(analysis).rows]
    assert names == ["params without embedding", "params with embedding"]
    assert named_count(family.points) == "params_without_embedding"
    assert list(other_counts(family.points)) == ["params_with_embedding"]


def two_families(columns: dict[str, list[str]] | None = None) -> Points:
    """Return a family with a law, and a family of four runs of one small size."""
    points = runs(noise=0.0)
    n, d, loss = points.params, points.tokens, points.loss
    thin = np.full(4, 1e4), np.geomspace(1e8, 1e9, 4), np.array([5.0, 4.9, 4.8, 4.7])
    both = (np.concatenate([a, b]) for a, b in zip((n, d, loss), thin, strict=True))
    return from_arrays(*both, family=["gam"] * 30 + ["thin"] * 4, columns=columns)


def test_a_family_without_a_law_sets_no_targets() -> None:
    analysis = analyse(two_families(), Settings(FAST, resamples=0, draws=0, held="none"))
    assert [left.name for left in analysis.left_out] == ["thin"]
    assert analysis.settings.targets == pytest.approx((1e10, 1e11))


def test_a_family_of_too_few_steps_is_named_with_the_reason() -> None:
    points = two_families({"steps": ["900"] * 30 + ["100"] * 4})
    settings = Settings(FAST, resamples=0, draws=0, min_steps=300, held="none")
    analysis = analyse(points, settings)
    (left,) = analysis.left_out
    assert left.name == "thin" and len(left.points) == 0
    assert [name for name, _ in analysis.measured] == ["gam"]
    said = " ".join(does_not_show(analysis))
    assert "Family thin: none of its 4 runs has 300 optimizer steps, so --min-steps" in said
    shown, _ = readable(analysis, Supplement())
    assert shown.left_out[0].reason == left.reason


def test_the_best_size_by_another_count_allows_for_its_flops() -> None:
    """N without embedding: FLOPs a token grow slower than it, so best sizes do not grow as fast."""
    points = runs(noise=0.0)
    blocks = points.params
    both = blocks + 300 * blocks**0.5  # a head, on which FLOPs are spent too
    law = Law(E=1.7, A=406.0, B=410.0, alpha=0.34, beta=0.28)
    columns = {"params_without_embedding": [str(b) for b in blocks]}
    whole = from_arrays(both, points.tokens, law.loss(blocks, points.tokens), columns=columns)
    analysis = analyse(whole, Settings(FAST, resamples=0, draws=0, held="none"))
    rows = {row[1]: row for row in by_count(analysis).rows}
    power = float(np.polyfit(np.log(blocks), np.log(both), 1)[0])
    assert power < 0.98
    assert float(rows["params without embedding"][6]) == pytest.approx(
        0.28 / (0.34 + power * 0.28), abs=2e-3
    )
    assert float(rows["params"][6]) == pytest.approx(analysis.families[0].optimum.a, abs=1e-3)


def test_the_spread_of_seeds_is_that_of_the_noise() -> None:
    points = runs(sizes=4, budgets=4)
    n, d = np.repeat(points.params, 200), np.repeat(points.tokens, 200)
    error = 0.01 * np.random.default_rng(0).standard_normal(len(n))
    # With 3,184 degrees of freedom, the standard deviation of the estimate is 1.3%.
    assert seed_spread(from_arrays(n, d, np.exp(error))) == pytest.approx(0.01, rel=0.05)
    assert seed_spread(points) is None


@pytest.mark.parametrize(
    ("rule", "held"), [("sizes", 10), ("budgets", 6), ("seed=7", 3), ("none", 0), ("seed=9", 0)]
)
def test_which_runs_are_held_out(rule, held) -> None:
    points = runs(noise=0.0)
    seeds = ["7" if i in (3, 8, 20) else "0" for i in range(30)]
    points = from_arrays(points.params, points.tokens, points.loss, columns={"seed": seeds})
    found, note = hold_out(points, FAST, rule)
    if not held:
        assert found is None and note
        return
    assert len(found.loss) == held and len(found.rest) == 30 - held
    assert found.mean_error < 1e-3 and found.fitted_error < 1e-3
    if rule == "budgets":
        assert (6 * found.params * found.tokens).min() > found.rest.flops.max()
