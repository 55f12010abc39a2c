"""Learning-rate schedules at their corners."""

import pytest
from closeness import rises

from gam_scale.config import TrainConfig
from gam_scale.schedule import learning_rate


def rates(steps=100, **changes):
    train = TrainConfig(lr=1.0, warmup_steps=10, **changes)
    return [learning_rate(train, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_and_reaches_the_peak(schedule):
    assert rates(schedule=schedule)[:11] == pytest.approx([0.1 * i for i in range(1, 11)] + [1.0])


def test_cosine_halves_midway_and_ends_near_zero():
    values = rates(schedule="cosine")
    assert values[55] == pytest.approx(0.5)
    assert rises(values[:10]) and rises(reversed(values[10:]))
    assert 0 < values[-1] < 0.001


def test_wsd_is_flat_and_then_falls_linearly():
    values = rates(schedule="wsd", decay_ratio=0.25)
    assert values[10:76] == [1.0] * 66
    assert values[75:] == pytest.approx([1 - i / 25 for i in range(25)])


def test_floor_and_no_warm_up():
    values = rates(schedule="cosine", min_lr_ratio=0.1)
    assert values[-1] == pytest.approx(0.1, abs=1e-3)
    train = TrainConfig(lr=1.0, warmup_steps=0, schedule="constant")
    assert learning_rate(train, 0, 5) == 1.0
