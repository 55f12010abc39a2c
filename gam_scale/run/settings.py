"""Which settings a resumed run may change, and whether it may be made longer or shorter."""

from pathlib import Path
from typing import Any

from gam_scale.config import RunConfig
from gam_scale.config.stages import first_steps
from gam_scale.former import in_todays_terms
from gam_scale.hyperparameters import asked
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
)
"""Settings that a resumed run may change; all others define what the run is."""


def differences(before: dict[str, Any], now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by dotted key: their value in config.json ``before`` and in ``now``."""
    # A run that is older than a setting has its default.
    old = in_todays_terms(merged(to_dict(RunConfig()), before), now)
    different = _differences(old, to_dict(now), "")
    # Whichever numbers the run has were chosen for it, or are kept: see run/chosen.py.
    chosen = {f"train.{name}" for name in asked(now.train)}
    return {key: both for key, both in different.items() if key not in chosen}


def is_of_stages(key: str) -> bool:
    """Whether a setting, by dotted key, says what the stages of a run are."""
    return key.startswith("train.stages")


def same_stages(saved: Path, now: RunConfig, step: int) -> bool:
    """Whether the first ``step`` steps are of the same stages in two configs of a run.

    Args:
        saved: file of the one before.
        now: the one to go on with.
        step: steps that the run has done.
    """
    return first_steps(read_record(RunConfig, saved), step) == first_steps(now, step)


def rewritten_past(saved: RunConfig, step: int, now: RunConfig) -> str:
    """Why the steps that a run has done are no part of a run of ``now``; empty where they are.

    Args:
        saved: config of its newest checkpoint.
        step: steps that it has done.
        now: the config to go on with, of another ``train.steps``: the learning rates of the steps
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
        # First the kind: other settings of two kinds differ for that reason.
        keys = sorted(old.keys() | new.keys(), key=lambda key: (key != "kind", key))
        parts = [(f"{where}.{key}" if where else key, old.get(key), new.get(key)) for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(f"{where}[{i}]", *both) for i, both in enumerate(zip(old, new, strict=True))]
    else:
        return {where: (old, new)} if old != new else {}
    return {k: v for key, a, b in parts for k, v in _differences(a, b, key).items()}
