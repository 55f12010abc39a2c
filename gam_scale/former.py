"""Configs that were saved when a setting had another default, to be compared with today's."""

from dataclasses import replace
from typing import Any

from gam_scale.config import RunConfig

MAX_HORIZON = 65_536.0
"""What model.memory.max_horizon was before it followed data.seq_len."""


def in_todays_terms(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """``saved``, with the horizon of ``config`` where both have the default of their time.

    It decides initial values alone, so a run that began with the former one goes on; its
    config.json then has today's.
    """
    memory = config.model.memory
    _, followed = replace(memory, max_horizon=0.0).horizons(config.data.seq_len)
    try:
        horizon = saved["model"]["memory"]["max_horizon"]
    except (KeyError, TypeError):  # older than the setting, or damaged: for the comparison to say
        return saved
    if memory.max_horizon not in (0.0, followed) or horizon not in (0.0, followed, MAX_HORIZON):
        return saved
    today = saved["model"]["memory"] | {"max_horizon": memory.max_horizon}
    return saved | {"model": saved["model"] | {"memory": today}}
