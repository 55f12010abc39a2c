"""The best family at each budget is found from measured losses, without a fit."""

from dataclasses import replace

import numpy as np
import pytest

from gam_scale.errors import UserError
from gam_scale.scaling.points import Points, from_arrays
from gam_scale.scaling.standing import standings


def family(flops: list[float], loss: list[float]) -> Points:
    params = np.geomspace(1e6, 2e6, len(flops))
    return from_arrays(params, np.array(flops) / (6 * params), loss, flops)


def test_the_least_loss_of_each_common_budget() -> None:
    """Runs meet a budget to a few percent; a budget of one family alone has no standing."""
    one = family([1e12, 1.02e12, 1e13, 0.98e13, 1e14], [4.0, 3.9, 3.5, 3.4, 3.0])
    two = family([1.01e12, 1.0e12, 1e13], [3.95, 4.1, 3.3])
    found = standings([("one", one), ("two", two)])
    assert [[(b.name, b.loss) for b in s.best] for s in found] == [
        [("one", 3.9), ("two", 3.95)],
        [("two", 3.3), ("one", 3.4)],
    ]
    assert found[0].margin == 3.95 - 3.9 and found[0].flops == 1.02e12


def test_without_common_budgets_a_run_counts_for_every_larger_one() -> None:
    """On a grid of tokens all FLOPs differ, so a family's least loss up to a budget counts."""
    flops = np.geomspace(1e12, 1e15, 40)
    loss = 3 + 1e3 / flops**0.25
    one = family(list(flops), list(loss))
    two = family(list(2.5 * flops), list(loss))
    found = standings([("one", one), ("two", two)])
    assert len(found) == 4 and found[0].flops >= 2.5e12 and found[-1].flops <= 1e15
    for standing in found:
        assert standing.best[0].name == "one"
        assert standing.best[0].loss == loss[flops <= standing.flops].min()


def test_late_losses_stand_beside_the_mean_where_they_are_known() -> None:
    one, two = (family([1e12, 1e13], loss) for loss in ([4.0, 3.5], [3.9, 3.6]))
    one = replace(one, columns={"late_loss": ("", "3.25")})
    found = standings([("one", one), ("two", two)])
    assert [[b.late for b in s.best] for s in found] == [[None, None], [3.25, None]]
    with pytest.raises(UserError, match="column late_loss has 'x'; expected a number above 0"):
        standings([("one", replace(one, columns={"late_loss": ("x", "3")})), ("two", two)])


def test_a_size_with_several_seeds_counts_with_their_mean() -> None:
    """The luckiest of three seeds is no better size; a lead within their spread is called that."""
    params, tokens = np.full(3, 1e6), np.full(3, 1e12 / 6e6)
    seeds = from_arrays(params, tokens, [3.99, 4.01, 4.03], np.full(3, 1e12))
    lone = family([1e12], [4.0])
    (found,) = standings([("seeds", seeds), ("lone", lone)])
    assert [b.name for b in found.best] == ["lone", "seeds"]
    assert found.best[1].loss == pytest.approx(4.01) and found.margin == pytest.approx(0.01)
    assert found.best[1].spread == pytest.approx(0.02, rel=0.01) and found.within_spread
    (ahead,) = standings([("seeds", seeds), ("lone", family([1e12], [3.9]))])
    assert not ahead.within_spread
    assert not standings([("one", lone), ("two", family([1e12], [4.001]))])[0].within_spread


def test_families_that_never_meet_have_no_standing() -> None:
    apart = [("one", family([1e12], [4.0])), ("two", family([1e15], [3.0]))]
    assert standings(apart) == [] == standings(apart[:1])
