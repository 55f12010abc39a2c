"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from gam_scale.config import TrainConfig
from gam_scale.config.stages import planned_steps


def learning_rate(train: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of 0-based ``step`` out of ``steps``.

    Warm-up is linear and reaches ``lr`` at step ``warmup_steps``. ``cosine`` then falls to
    ``lr * min_lr_ratio`` at the end; ``wsd`` (warmup-stable-decay, arXiv 2404.06395) stays at
    ``lr`` and falls linearly over the last ``decay_ratio`` of the run. With ``anneal`` the rates
    up to its ``from_step`` are those of a run of ``of_steps`` steps, and fall linearly from there.
    """
    anneal = train.anneal
    if not anneal.steps:
        return _planned(train, step, steps)
    if step < anneal.from_step:
        return _planned(train, step, anneal.of_steps)
    begin, end = _planned(train, anneal.from_step, anneal.of_steps), train.lr * train.min_lr_ratio
    return end + (begin - end) * (anneal.from_step + anneal.steps - step) / anneal.steps


def _planned(train: TrainConfig, step: int, steps: int) -> float:
    """Return the rate by the schedule, leaving ``anneal`` aside."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    floor = train.min_lr_ratio
    if train.schedule == "cosine":
        done = (step - train.warmup_steps) / max(1, steps - train.warmup_steps)
        shape = 0.5 * (1.0 + math.cos(math.pi * done))
    elif train.schedule == "wsd":
        decay_steps = train.decay_ratio * steps
        shape = min(1.0, (steps - step) / decay_steps) if decay_steps > 0 else 1.0
    else:
        return train.lr
    return train.lr * (floor + (1.0 - floor) * shape)


def stable_steps(train: TrainConfig, steps: int) -> int:
    """Return how many steps at the start have rates that do not depend on the number of steps.

    Runs that differ only in their number of steps are the same run up to the smaller of theirs.
    """
    if train.schedule == "constant":
        return steps
    if train.schedule == "wsd":
        return max(train.warmup_steps, math.floor(steps - train.decay_ratio * steps))
    return min(train.warmup_steps, steps)


def shared_steps(one: TrainConfig, other: TrainConfig) -> int:
    """Return how many steps at the start have the same rates in two runs.

    The runs' settings are the same, except for the number of steps and a decay on demand.
    """
    both = one, other
    ends = [train.anneal.from_step if train.anneal.steps else train.steps for train in both]
    plans = [planned_steps(train) for train in both]
    if plans[0] == plans[1] and (one.anneal.steps or other.anneal.steps):
        return min(ends)
    return min(*ends, *(stable_steps(t, plan) for t, plan in zip(both, plans, strict=True)))
