"""A run that branches off another: it begins at a checkpoint up to which both are the same run."""

from pathlib import Path

from gam_scale.checkpoint.store import load_config_of
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.run.directory import RunDir
from gam_scale.schedule import shared_steps, stable_steps


def branch_checkpoint(config: RunConfig, data: str) -> Path:
    """Return the checkpoint of ``checkpoint.branch_of`` that a new run of ``config`` goes on from.

    Args:
        data: fingerprint of the new run's data stream.

    Raises:
        UserError: ``branch_of`` is not the same run, or kept no checkpoint that is early enough.
    """
    trunk = RunDir(config.checkpoint.branch_of)
    if not trunk.config.exists():
        raise UserError(f"checkpoint.branch_of {trunk.path} is not a run directory")
    if differs := trunk.difference(config, data):
        raise UserError(f"checkpoint.branch_of: {differs}; expected the same but for train.steps")
    checkpoint = newest_shared(trunk, config)
    if checkpoint is None:
        last = stable_steps(config.train, config.train.steps)
        raise UserError(
            f"checkpoint.branch_of {trunk.path} has no checkpoint of a step up to {last}, where "
            f"train.steps {config.train.steps} begins to matter; expected {last} among its "
            "checkpoint.keep_steps"
        )
    return checkpoint


def newest_shared(trunk: RunDir, config: RunConfig) -> Path | None:
    """Return the newest checkpoint of ``trunk`` that a run of ``config`` would pass through too."""
    for step in reversed(trunk.checkpoints.steps()):
        path = trunk.checkpoints.path(step)
        saved = load_config_of(path).train  # the trunk's train.steps may have changed since
        if step <= shared_steps(config.train, saved):
            return path
    return None
