"""A decay of the learning rate that begins on demand, and with which the run ends.

A user asks for it by ``pretrain.py --anneal-now STEPS`` at a start, or, while a job trains, by a
file ``anneal-now`` in its run directory that holds the number of steps. The decay begins at the
newest checkpoint; anneal.json notes where, so that every later start follows the same rates.
"""

import logging
from dataclasses import asdict, replace
from pathlib import Path

from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import load_config_of
from gam_scale.config import AnnealConfig, RunConfig, TrainConfig
from gam_scale.config.stages import planned_steps
from gam_scale.errors import UserError
from gam_scale.files import read_regular, write_json
from gam_scale.run.directory import RunDir
from gam_scale.schedule import learning_rate
from gam_scale.strict import read_record, shown

logger = logging.getLogger("gam_scale")


def requested(run: RunDir) -> int:
    """Return the steps that the file ``anneal-now`` asks for; 0 if there is no file.

    A file without a valid number is removed; whatever the file is, a run that trains goes on.
    """
    try:
        text = read_regular(run.anneal_now).decode(errors="replace").strip()
    except (OSError, UserError):  # mostly there is no file
        return 0
    if not text:  # its writer has just opened it
        return 0
    if text.isdecimal() and 0 < int(text) < 10**12:
        return int(text)
    logger.warning("%s has %s; expected a number of steps", run.anneal_now, shown(text))
    run.anneal_now.unlink(missing_ok=True)
    return 0


def find_anneal(run: RunDir, config: RunConfig, asked: int = 0) -> AnnealConfig:
    """Return the decay that the run has begun or begins at its newest checkpoint; 0 steps: none.

    Args:
        run: the run's directory.
        config: the run's complete config.
        asked: steps asked for on the command line; 0: the file may ask, and waits if it is too
            early.

    Raises:
        UserError: the command line asks, but there is no checkpoint, or the rate there is not above
            the rate that the decay would end with.
    """
    steps = asked or requested(run)
    if run.anneal.exists():
        begun: AnnealConfig = read_record(AnnealConfig, run.anneal)
        if steps not in (0, begun.steps):
            said = "a decay of %d steps is asked for, but one of %d goes on since step %d"
            logger.warning(said, steps, begun.steps, begun.from_step)
        return begun
    if not steps:
        return AnnealConfig()
    checkpoint = run.checkpoints.latest() or _of_trunk(config)
    step = 0 if checkpoint is None else load_state(checkpoint).step
    saved = config.train if checkpoint is None else load_config_of(checkpoint).train
    if checkpoint is not None and can_decay(saved, step):
        return AnnealConfig(from_step=step, steps=steps, of_steps=planned_steps(saved))
    if not asked:
        return AnnealConfig()
    if checkpoint is None:
        raise UserError(
            f"--anneal-now: {run.path} has no checkpoint to begin a decay at; expected a run that "
            "has saved one, or checkpoint.branch_of such a run"
        )
    raise UserError(
        f"--anneal-now: the learning rate of {checkpoint} is "
        f"{learning_rate(saved, step, saved.steps):.1e}, not above the "
        f"{saved.lr * saved.min_lr_ratio:.1e} with which a decay ends; expected a checkpoint from "
        "after the warm-up and before the end of its decay"
    )


def can_decay(train: TrainConfig, step: int) -> bool:
    """Whether the rate of a step is above a decay's last rate; early in the warm-up it is not."""
    return learning_rate(train, step, train.steps) > train.lr * train.min_lr_ratio


def with_anneal(config: RunConfig, anneal: AnnealConfig) -> RunConfig:
    """Return the config of a run that ends with ``anneal`` and keeps the checkpoint before it."""
    if not anneal.steps:
        return config
    step = anneal.from_step
    train = replace(config.train, anneal=anneal, steps=step + anneal.steps)
    kept = sorted({*config.checkpoint.keep_steps, step})
    checkpoint = replace(config.checkpoint, keep_steps=kept)
    return replace(config, train=train, checkpoint=checkpoint)


def note_anneal(run: RunDir, anneal: AnnealConfig) -> None:
    """Note the decay for all later starts of the run, and remove the file that asked for it."""
    if anneal.steps:
        if not run.anneal.exists():
            run.check_lock()
            write_json(run.anneal, asdict(anneal))
            said = "the learning rate comes down from step %d over %d steps, with which it ends"
            logger.info(said, anneal.from_step, anneal.steps)
        run.anneal_now.unlink(missing_ok=True)


def _of_trunk(config: RunConfig) -> Path | None:
    """Return the trunk's newest checkpoint from before any decay of its own; None: none."""
    if not config.checkpoint.branch_of:
        return None
    trunk = RunDir(config.checkpoint.branch_of)
    for step in reversed(trunk.checkpoints.steps()):
        path = trunk.checkpoints.path(step)
        anneal = load_config_of(path).train.anneal
        if not anneal.steps or step <= anneal.from_step:
            return path
    return None
