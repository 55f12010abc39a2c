"""Test intervals: known cases, and wider ones where tokens vary together."""

import math

import numpy as np
import pytest

from gam_scale.evaluate.interval import bootstrap, mean_interval, proportion


def test_the_mean_of_independent_values_has_the_textbook_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    interval = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    # With 2,000 resamples a quantile is exact to a few percent of the width.
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_sequences_are_resampled_not_tokens():
    """The 50 tokens of a sequence all cost the same, so they tell no more than one would."""
    costs = np.random.default_rng(1).normal(size=100)
    sums, counts = (50 * costs)[:, None], np.full((100, 1), 50.0)
    (clustered,) = bootstrap(sums, counts)
    alone = mean_interval(costs)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))


def test_sequences_count_by_their_tokens_and_groups_may_lack_some():
    sums = np.array([[10.0, 0.0, 0.0], [8.0, 3.0, 0.0]])
    counts = np.array([[5.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    both, one, none = bootstrap(sums, counts)
    assert both.mean == 3.0  # 18 nats over 6 tokens; the mean of the sequences' means is 5
    assert (one.mean, one.low, one.high) == (3.0, -math.inf, math.inf)
    assert none is None


def test_proportions_stay_honest_at_their_ends():
    asked = np.full(200, 8.0)
    all_right = proportion(asked, asked)
    assert all_right.high == 1.0
    assert all_right.low == pytest.approx(200 / (200 + 1.96**2), abs=1e-4)  # Wilson at 200 of 200
    coins = np.random.default_rng(2).binomial(1, 0.5, 1000).astype(float)
    interval = proportion(coins, np.ones(1000))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), rel=0.02)


def test_questions_of_one_text_that_stand_or_fall_together_count_once():
    together = np.array([8.0, 0.0] * 100)
    asked = np.full(200, 8.0)
    clustered, apart = proportion(together, asked), proportion(together / 8, np.ones(200))
    assert clustered.high - clustered.low == pytest.approx(apart.high - apart.low, rel=0.01)
