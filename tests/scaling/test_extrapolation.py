"""Predictions for untrained models: those asked about, and no others far beyond the runs."""

from dataclasses import replace

import numpy as np
import pytest
from scaling.synthetic import TRUE, runs

from gam_scale.errors import UserError
from gam_scale.report.numbers import general, ranged
from gam_scale.scaling.analysis import Settings, analyse
from gam_scale.scaling.bootstrap import Bootstrap
from gam_scale.scaling.cost import Cost
from gam_scale.scaling.extrapolation import ASKED, OPTIMAL, Model, at_size
from gam_scale.scaling.fit import FitSettings
from gam_scale.scaling.law import Law
from gam_scale.scaling.law_text import latex, latex_text, law_rows
from gam_scale.scaling.optimum import Optimum
from gam_scale.scaling.points import from_arrays
from gam_scale.scaling.tables import costs, extrapolations
from gam_scale.scaling.words import shows

FAST = Settings(FitSettings(grid=2), resamples=100, draws=0)


def test_unasked_nothing_is_beyond_100_times_the_largest_model() -> None:
    analysis = analyse(runs(), FAST)
    assert analysis.settings.targets == pytest.approx((1e10, 1e11))
    sizes = {e.params for e in analysis.families[0].extrapolations}
    assert sizes == set(analysis.settings.targets)


def test_a_model_that_is_asked_about_has_a_loss_with_an_interval() -> None:
    analysis = analyse(runs(), replace(FAST, targets=(7e9,), at=(Model(2e9, 3e11),)))
    asked = analysis.families[0].extrapolations[-1]
    assert (asked.rule, asked.params, asked.tokens) == (ASKED, 2e9, 3e11)
    low, high = asked.loss_interval
    assert low <= asked.loss <= high and low < TRUE.loss(2e9, 3e11) < high
    assert any("2B parameters, trained on 300B tokens" in s for s in shows(analysis))
    (row,) = [row for row in extrapolations(analysis).rows if row[2] == ASKED]
    assert row[-2:] == ["2 times", "15 times"]
    assert row[5] == ranged(asked.loss, asked.loss_run_interval) != ranged(asked.loss, (low, high))


def test_a_model_of_one_family_is_predicted_by_its_law_alone() -> None:
    one, two = runs(), runs(seed=1)
    names = ["one"] * len(one) + ["two"] * len(two)
    columns = ("params", "tokens", "loss")
    both = (np.concatenate([getattr(p, c) for p in (one, two)]) for c in columns)
    asked = (Model(2e9, 3e11, "two"), Model(3e9, 3e11))
    found = analyse(from_arrays(*both, family=names), replace(FAST, targets=(7e9,), at=asked))
    sizes = [[e.params for e in f.extrapolations if e.rule == ASKED] for f in found.families]
    assert [f.name for f in found.families] == ["one", "two"] and sizes == [[3e9], [2e9, 3e9]]


def test_five_runs_have_a_law_of_one_exponent() -> None:
    """That law has four coefficients; a law of five coefficients takes eight runs."""
    params, tokens = np.array([1e6, 1e6, 1e7, 1e8, 1e8]), np.array([1e8, 1e9, 1e8, 1e10, 1e9])
    law = Law(E=2.0, A=300.0, B=300.0, alpha=0.33, beta=0.33)
    points = from_arrays(params, tokens, law.loss(params, tokens))
    shared = replace(FAST, fit=FitSettings(grid=2, shared_exponent=True))
    (family,) = analyse(points, shared).families
    assert family.fit.law.alpha == pytest.approx(0.33, abs=1e-3)
    with pytest.raises(UserError, match="has 5 rows; expected at least 8"):
        analyse(points, FAST)


@pytest.mark.filterwarnings("error")
def test_refits_under_which_a_size_is_never_the_best_are_infinite_and_no_warning() -> None:
    """An interval survives one of 400 refits that wants more FLOPs than floats hold, but not 40."""
    steep = Law(E=1.7, A=1e9, B=10.0, alpha=2.9, beta=0.02)
    for count in (1, 40):
        refits = Bootstrap(
            [[TRUE]] * (400 - count) + [[steep]] * count, np.zeros(400), degrees_of_freedom=20
        )
        best, _ = at_size(1e11, Optimum(TRUE, 6.0), refits)
        assert (best.flops_interval is None) == (count == 40)


def test_what_is_unknown_says_so() -> None:
    """An interval of tokens over a factor of 1e4 says nothing, so no cell has a number from it."""
    analysis = analyse(runs(), FAST)
    (family,) = analysis.families
    lost = [
        replace(e, tokens_interval=(1.0, 1e5)) if e.rule == OPTIMAL else e
        for e in family.extrapolations
    ]
    family = replace(family, extrapolations=lost, intervals=dict.fromkeys(family.intervals))
    analysis = replace(analysis, families=[family])
    rows = [row for row in extrapolations(analysis).rows if row[2] == OPTIMAL]
    assert all(row[3:6] == ["unknown"] * 3 for row in rows)
    hours = [row for row in costs(analysis, Cost.of(["h100"], 0.4)).rows if row[2] == OPTIMAL]
    assert all(row[3:] == ["unknown"] * 2 for row in hours)
    assert not any("would want" in sentence for sentence in shows(analysis))
    assert family.farthest == max(e.flops for e in lost if e.rule != OPTIMAL)


def test_the_law_as_latex_and_csv() -> None:
    analysis = analyse(runs(), FAST)
    (family,) = analysis.families
    law = family.fit.law
    text = latex(analysis)
    assert f"L(N, D) &= {law.E:.3f} + " in text and f"{{N^{{{law.alpha:.3f}}}}}" in text
    family = replace(
        family, name="a_b & {$c}\n\\d", fit=replace(family.fit, laws=[replace(law, A=1.68e7)])
    )
    text = latex(replace(analysis, families=[family]))
    assert r"L_{\text{a\_b \& \{\$c\} \textbackslash{}d}}(N, D)" in text
    assert r"\frac{1.68 \times 10^{7}}" in text
    assert latex_text("~^") == r"\textasciitilde{}\textasciicircum{}"
    header, (row,) = law_rows(analysis)
    named = dict(zip(header, row, strict=True))
    assert named["alpha"] == law.alpha and named["alpha_low"] <= law.alpha <= named["alpha_high"]
    assert named["a"] == analysis.families[0].optimum.a


def test_numbers_have_one_style() -> None:
    shown = [general(x) for x in (0.34, 25_600.4, 1.68e7, 7.46, 4.1e-9, 406, 0, -2.5, 99_999)]
    expected = ["0.340", "25,600", "1.68e7", "7.46", "4.1e-9", "406", "0.00", "-2.50", "1e5"]
    assert shown == expected
    assert general(float("inf")) == general(float("nan")) == "unknown"
    assert pytest.approx(1758) == float(general(1758.2, 4).replace(",", ""))
