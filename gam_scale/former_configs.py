"""Rewrite configs that were saved with former defaults, to compare them with today's."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.model.parts import FEED_FORWARDS, MIXERS, NORMS, Registry
from gam_scale.strict import to_dict

MAX_HORIZON = 65_536.0
"""The default of model.memory.max_horizon before it followed data.seq_len."""


def in_todays_terms(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return a saved config as it would be saved today, to be compared with ``config``.

    If both longest horizons are the default of their time, the saved one becomes that of
    ``config``: horizons decide only initial values, so the run may go on. Its config.json then has
    today's.
    """
    saved = _with_parts(_with_layers(saved, config), config)
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


def _with_parts(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return ``saved`` with norm and feed-forward network as in ``config``, where they are equal.

    To compare them, a setting that a kind did not have yet is its default.
    """
    registries: tuple[tuple[str, Registry], ...] = (("norm", NORMS), ("ffn", FEED_FORWARDS))
    model = saved.get("model")
    if not isinstance(model, dict):  # damaged: for the comparison to say
        return saved
    for key, registry in registries:
        was, now = model.get(key), getattr(config.model, key)
        if isinstance(was, dict) and not isinstance(now, str):
            with suppress(UserError):
                if registry.read(was, "") == now:
                    model = model | {key: to_dict(now)}
    return saved | {"model": model}


def _with_layers(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Return ``saved`` with layers as in ``config``, where they are equal at its text length.

    To compare them, a setting that a kind did not have yet is its default, and a horizon that
    nobody set follows the text length.
    """
    layers, length = config.model.layers, config.data.seq_len
    try:
        before = list(saved["model"]["layers"])
    except (KeyError, TypeError):  # no layers, or damaged: for the comparison to say
        return saved
    for i, (was, now) in enumerate(zip(before, layers, strict=False)):
        if isinstance(was, dict) and not isinstance(now, str):
            with suppress(UserError):  # another kind's, or damaged: for the comparison to say
                then = MIXERS.of(MIXERS.read(was, ""))
                if then.at_length(length) == now.at_length(length):
                    before[i] = to_dict(now)
    return saved | {"model": saved["model"] | {"layers": before}}
