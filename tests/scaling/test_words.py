"""Sentences on many families, and on families with names of every kind."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scaling.synthetic import isoflop_runs

from gam_scale.scaling import compare
from gam_scale.scaling.analysis import Analysis, LeftOut, Pair, Settings, analyse
from gam_scale.scaling.fit import FitSettings
from gam_scale.scaling.names import readable
from gam_scale.scaling.points import from_arrays
from gam_scale.scaling.supplement import Curve, Supplement
from gam_scale.scaling.words import does_not_show, shows


@pytest.fixture(scope="module")
def one() -> Analysis:
    """The analysis of one family on common budgets, without intervals."""
    return analyse(isoflop_runs(), Settings(FitSettings(grid=2), resamples=0, draws=0))


def several(analysis: Analysis, *names: str) -> Analysis:
    """Return the analysis of families of these names, each a little better than the one before."""
    (family,) = analysis.families
    p = family.points
    families = []
    for i, name in enumerate(names):
        points = from_arrays(p.params, p.tokens, p.loss * 0.99**i, p.flops)
        families.append(replace(family, name=name, points=points))
    pairs = [
        Pair(a, b, [compare.Test("one law", 9.0, 1e-4 if a == names[0] else 0.5, 9999)] * 2, {})
        for a, b in combinations(names, 2)
    ]
    return replace(analysis, families=families, pairs=pairs)


def test_the_first_sentence_says_who_is_best(one) -> None:
    first = shows(several(one, "a", "b"))[0]
    assert first.startswith("b has the least measured loss at every budget, in nats per token: ")
    assert first.count("a is 0.0") == 5 and "1e17 FLOPs" in first and "1e21 FLOPs" in first


def test_a_lead_within_the_seeds_spread_is_called_that(one) -> None:
    told = several(one, "a", "b")
    points = told.families[0].points
    twice = {
        name: np.concatenate([getattr(points, name)] * 2)
        for name in ("params", "tokens", "loss", "flops")
    }
    twice["loss"][: len(points)] *= 1.02
    again = replace(told.families[0], points=from_arrays(**twice))
    assert "within the seeds' spread" not in shows(told)[0]
    assert "within the seeds' spread" in shows(replace(told, families=[again, told.families[1]]))[0]


def test_what_lies_beyond_is_on_a_condition_where_the_runs_do_not_follow(one) -> None:
    (family,) = one.families
    doubted = replace(family, verdict=replace(family.verdict, reasons=("the mean error is 3%",)))
    for each, condition in ((family, False), (doubted, True)):
        said = [
            s
            for s in shows(replace(one, families=[each]))
            if "ten times the" in s or "FLOPs, a" in s
        ]
        assert len(said) == 3
        assert [s.startswith("If the law holds, ") for s in said] == [condition] * 3


def test_many_comparisons_are_one_sentence_at_a_level_for_their_number(one) -> None:
    names = [f"f{i}" for i in range(12)]
    (sentence,) = [s for s in shows(several(one, *names)) if "pairs" in s]
    assert sentence.startswith("Of 66 pairs of families 11 follow different laws at p <= 7.6e-4,")
    few = [s for s in shows(several(one, "a", "b", "c")) if "law" in s and " and " in s]
    assert len([s for s in few if "follow different laws" in s]) == 2


def test_too_few_draws_for_so_many_comparisons_are_said(one) -> None:
    """With 500 draws p is at least 1 / 501: too large for 66 pairs, small enough for 10."""

    def sentence(count: int, draws: int) -> str:
        told = several(one, *(f"f{i}" for i in range(count)))
        pairs = [
            replace(
                pair,
                tests=[replace(t, p=max(t.p, 1 / (draws + 1)), draws=draws) for t in pair.tests],
            )
            for pair in told.pairs
        ]
        (found,) = [s for s in shows(replace(told, pairs=pairs)) if "pairs" in s]
        return found

    assert sentence(12, 500).startswith("Of 66 pairs of families 11 differ more than all data")
    assert sentence(12, 500).endswith("takes --test-draws 1319.")
    assert sentence(12, 1319).startswith("Of 66 pairs of families 11 follow different laws")
    assert sentence(5, 500).startswith("Of 10 pairs of families 4 follow different laws")


def test_exponents_that_differ_are_explained(one) -> None:
    (family,) = one.families
    assert not any("isoFLOP minima" in s for s in does_not_show(one))
    far = replace(family.isoflop, a=0.7, b=0.3, a_interval=(0.69, 0.71))
    family = replace(family, isoflop=far, intervals=family.intervals | {"a": (0.44, 0.46)})
    (sentence,) = [s for s in does_not_show(replace(one, families=[family])) if "C^0.700" in s]
    assert "their intervals do not meet, so one of the two is biased" in sentence


def test_names_are_short_and_differ_everywhere(one) -> None:
    names = ["x" * 400, "x" * 399, "a\nb", "a b"]
    told = several(one, *names)
    reason = f"family {'y' * 400}: has 3 rows"
    left = LeftOut("y" * 400, told.families[0].points, reason, told.families[0].isoflop)
    curves = [Curve(names[0], 1.0, [1.0], [2.0])]
    shown, supplement = readable(replace(told, left_out=[left]), Supplement(curves=curves))
    short = [name for name, _ in shown.measured]
    assert len(set(short)) == 5 and short[2:4] == ["a b", "a b (2)"]
    assert supplement.curves[0].family == short[0]
    said = " ".join([*shows(shown), *does_not_show(shown)])
    assert "\n" not in said and "x" * 49 not in said and "y" * 49 not in said
    assert readable(several(one, "a", "b"), Supplement())[0].families[0].name == "a"
    assert np.isfinite(shown.families[0].points.loss).all()
