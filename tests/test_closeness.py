"""The comparisons of other tests: none is passed by NaN, wherever it stands."""

import math

import pytest
import torch
from closeness import differ, is_alive, least, off, rises, worst

ONES = torch.ones(3)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(3))
def test_nothing_that_is_not_finite_passes(broken, where):
    x, values = ONES.clone(), [0.0, 0.0, 0.0]
    x[where] = values[where] = broken
    assert off(x, ONES) == off(ONES, x) == off(x, x) == worst(values) == -least(values) == math.inf
    assert not is_alive(x) and not differ(x, ONES) and not differ(ONES, x)
    assert not rises(values)


def test_what_they_measure():
    assert off(1.1 * ONES, ONES) == pytest.approx(0.1) and off(ONES, ONES) == 0
    assert off(ONES, 0 * ONES) == math.inf and off(0 * ONES, 0 * ONES) == 0
    assert (worst([1.0, 3.0, 2.0]), least([1.0, 3.0, 2.0])) == (3.0, 1.0)
    assert worst([]) == -least([]) == math.inf  # nothing was compared
    assert is_alive(ONES) and not is_alive(0 * ONES) and not is_alive(None)
    assert rises([0.0, 1.0, 1.0, 2.0]) and not rises([0.0, 2.0, 1.0]) and rises([])
    assert differ(ONES, 2 * ONES) and not differ(ONES, ONES.clone())
