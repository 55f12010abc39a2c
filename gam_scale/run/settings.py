"""Which settings a resumed run may change, and whether the run may be made longer or shorter."""

from pathlib import Path
from typing import Any

from gam_scale.config import RunConfig
from gam_scale.config.stages import first_steps
from gam_scale.former_configs import in_todays_terms
from gam_scale.hyperparameters import auto_settings
from gam_scale.schedule import learning_rate, shared_steps
from gam_scale.strict import merged, read_record, to_dict

MAY_CHANGE = (
    "train.steps",
    "train.epochs",
    "train.anneal",
    "train.micro_batch_size",
    "train.compile",
    "train.recompute",
    "train.spike_ratio",
    "train.max_skipped_steps",
    "train.profile",
    "parallel",
    "checkpoint",
    "eval",
    "log",
    "data.cache_dir",
    "data.cache_limit_gb",
)
"""Settings that a resumed run may change; all others define what the run is."""


def differences(before: dict[str, Any], now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, by dotted key: the values in ``before`` and in ``now``."""
    # A run from before a setting existed has the setting's default.
    old = in_todays_terms(merged(to_dict(RunConfig()), before), now)
    different = _differences(old, to_dict(now), "")
    # Settings that are "auto" now take the numbers that the run has: see run/chosen.py.
    chosen = {f"train.{name}" for name in auto_settings(now.train)}
    return {key: both for key, both in different.items() if key not in chosen}


def is_of_stages(key: str) -> bool:
    """Whether a setting, by dotted key, says what the stages of a run are."""
    return key.startswith("train.stages")


def same_stages(saved: Path, now: RunConfig, step: int) -> bool:
    """Return whether the first ``step`` steps have the same stages in two configs of a run.

    Args:
        saved: file of the earlier config.
        now: the config to go on with.
        step: steps that the run has done.
    """
    return first_steps(read_record(RunConfig, saved), step) == first_steps(now, step)


def why_steps_do_not_fit(saved: RunConfig, step: int, now: RunConfig) -> str:
    """Return why the steps that a run has done do not fit a run of ``now``; empty if they fit.

    Args:
        saved: config of the run's newest checkpoint.
        step: steps that the run has done.
        now: the config to go on with, with another ``train.steps``: the learning rates of the steps
            done may depend on how many there are in all.
    """
    before, after = saved.train, now.train
    if after.steps == before.steps or step <= shared_steps(before, after):
        return ""
    last = learning_rate(before, step - 1, before.steps)
    following = learning_rate(after, step, after.steps)
    return (
        f"train.steps is {after.steps} but the {step} steps done followed train.schedule "
        f"{before.schedule} over {before.steps}, so that the learning rate would go from "
        f"{last:.1e} to {following:.1e}"
    )


def _differences(old: Any, new: Any, where: str) -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        # The kind comes first: if it differs, so do the other settings, for that reason.
        keys = sorted(old.keys() | new.keys(), key=lambda key: (key != "kind", key))
        parts = [(f"{where}.{key}" if where else key, old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(f"{where}[{i}]", *both) for i, both in enumerate(zip(old, new, strict=True))]
    else:
        return {where: (old, new)} if old != new else {}
    return {k: v for key, a, b in parts for k, v in _differences(a, b, key).items()}
