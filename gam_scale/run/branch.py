"""A run that begins at a checkpoint of another one, up to which both would be the same run."""

from pathlib import Path

from gam_scale.checkpoint.store import load_config_of
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.run.directory import RunDir
from gam_scale.schedule import shared_steps, stable_steps


def branch_checkpoint(config: RunConfig, data: str) -> Path:
    """The checkpoint of ``checkpoint.branch_of`` that a new run of ``config`` goes on from.

    Args:
        data: fingerprint of its data stream.

    Raises:
        UserError: it is another run, or it kept no checkpoint that is early enough.
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
    """The newest checkpoint of ``trunk`` that is a state of ``config``'s run as well."""
    for step in reversed(trunk.checkpoints.steps()):
        path = trunk.checkpoints.path(step)
        saved = load_config_of(path).train  # its steps may have been others than the run's now
        if step <= shared_steps(config.train, saved):
            return path
    return None
