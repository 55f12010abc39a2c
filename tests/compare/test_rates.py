"""Test which rate is tried next when the best one is the largest or smallest so far."""

import pytest

from gam_scale.compare.rates import beyond


@pytest.mark.parametrize(
    ("tried", "best", "expected"),
    [
        ([1e-3, 2e-3, 4e-3], 2e-3, None),
        ([1e-3, 2e-3, 4e-3], 4e-3, 8e-3),
        ([4e-3, 2e-3, 1e-3], 1e-3, 5e-4),
        ([1e-3, 3e-3, 1e-2], 1e-2, 0.0333),
        ([1e-3, 3e-3, 1e-2, 0.0333], 0.0333, 0.111),
        ([1e-3, 3e-3, 1e-2, 0.0333], 1e-2, None),
        ([1e-3], 1e-3, None),
    ],
)
def test_a_best_rate_at_an_end_asks_for_the_next_one(tried, best, expected):
    assert beyond(tried, best) == expected
