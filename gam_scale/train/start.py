"""Where a run starts: at its newest checkpoint, at another run's, or at initial weights."""

import logging
import socket
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from gam_scale.checkpoint.carried import read_carried
from gam_scale.checkpoint.restore import restore
from gam_scale.checkpoint.state import TrainState, load_state
from gam_scale.checkpoint.store import CheckpointStore, load_config_of
from gam_scale.checkpoint.store import resolve as find_checkpoint
from gam_scale.checkpoint.verify import TOKENIZER, verify_checkpoint
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.files import read_regular, write_json
from gam_scale.model.gam import WrittenLayer
from gam_scale.model.lm import outline
from gam_scale.model.memory.base import WrittenMemory
from gam_scale.parallel.agreed import agreed
from gam_scale.parallel.build import initialise
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World
from gam_scale.remote import is_url
from gam_scale.run.branch import branch_checkpoint
from gam_scale.run.continuation import continuation, continued_checkpoint
from gam_scale.run.directory import RunDir
from gam_scale.train.reading import RunData

logger = logging.getLogger("gam_scale")

SOURCES = ("continue_from", "branch_of", "init_from")
"""Settings of the section ``checkpoint`` that name another run to begin with."""
FAR_HORIZON = 4
"""Sequence lengths above which a memory's longest horizon at initialisation gets a warning."""


def check_same_data(world: World, fingerprint: str) -> None:
    """Refuse ranks that read other data, such as an old copy of what was replaced at a URL.

    Args:
        world: all ranks call this.
        fingerprint: the data that this rank reads.

    Raises:
        UserError: on all ranks alike; those that differ from rank 0 name their host.
    """
    first = agreed(world, lambda: fingerprint)
    if world.any(fingerprint != first):
        here = f"rank {world.rank} on {socket.gethostname()}: other data than rank 0"
        raise UserError(
            f"ranks read different data ({here if fingerprint != first else 'others say which'}); "
            "expected the same set on every host (copies of a URL's files are in data.cache_dir: "
            "delete them if the set was replaced there)"
        )


def check_start(run: RunDir, config: RunConfig, data: RunData, *, fresh: bool) -> None:
    """Refuse a source that the run cannot begin with, before anything is written or removed."""
    if run.checkpoints.steps() and not (fresh and run.fresh_removes()):
        return  # the run has begun, so its sources do not matter
    here = Path(config.log.run_dir).resolve()
    for key in SOURCES:
        source = getattr(config.checkpoint, key)
        far = is_url(source)
        if source and not far and Path(source).resolve().is_relative_to(here):
            raise UserError(
                f"checkpoint.{key} {source} is in log.run_dir {here} itself; expected a new "
                "run directory for a run that begins with another"
            )
    if config.checkpoint.continue_from:
        folder = continued_checkpoint(config.checkpoint.continue_from, run.continued, run.cache)
        continuation(folder, config, data.stream, data.tokenizer.model_bytes)
    if config.checkpoint.branch_of:
        branch_checkpoint(config, data.stream.fingerprint())
    if config.checkpoint.init_from:
        find_checkpoint(config.checkpoint.init_from, run.cache)


def start_or_resume(
    run: RunDir, config: RunConfig, strategy: Strategy, data: RunData
) -> TrainState:
    """Load into ``strategy`` the state that the run resumes or begins with; called by all ranks.

    Raises:
        UserError: a checkpoint is damaged, or belongs to another run or model.
    """
    world, fingerprint = strategy.world, data.stream.fingerprint()
    newest = newest_sound(
        run.checkpoints,
        world,
        fall_back=config.checkpoint.fall_back,
        check_lock=run.check_lock,
    )
    if newest is not None:
        _say_what_is_ignored(newest, config)
    elif config.checkpoint.branch_of:
        newest = agreed(world, partial(branch_checkpoint, config, fingerprint))
        verify_checkpoint(newest, world.rank, world.world_size)
        if world.is_main:
            run.check_lock()
            run.take_metrics(config.checkpoint.branch_of, load_state(newest).step)
    if newest is None and config.checkpoint.continue_from:
        return _continue(run, config, strategy, data)
    if newest is None:
        if world.is_main:
            run.check_lock()
            run.continued.unlink(missing_ok=True)
        if config.checkpoint.init_from:
            folder = _start_from(config.checkpoint.init_from, strategy, run.cache)
            _warn_of_another_tokenizer(folder, data.tokenizer.model_bytes)
        else:
            initialise(strategy, config)
            _warn_of_horizons(config)
        return TrainState()
    state = load_state(newest)
    # An imported checkpoint has no fingerprint: it has not seen this data.
    if state.data_fingerprint and state.data_fingerprint != fingerprint:
        raise UserError(
            f"the data of {run.path} has changed since step {state.step} was saved; expected the "
            "same prepared sets, another log.run_dir, or --fresh to start over"
        )
    _load(newest, strategy, reads_on=True)
    logger.info("resuming from %s", newest)
    return state


def _say_what_is_ignored(newest: Path, config: RunConfig) -> None:
    """Warn of sources that are ignored, since a run that has begun goes on with its own state."""
    known = load_config_of(newest).checkpoint
    for key in SOURCES:
        source = getattr(config.checkpoint, key)
        if source and source != getattr(known, key):
            logger.warning(
                "checkpoint.%s %s is ignored, since the run has begun: a new log.run_dir, or "
                "--fresh, would begin with it",
                key,
                source,
            )


def _load(folder: Path, strategy: Strategy, *, reads_on: bool) -> None:
    """Load weights and optimizer and, if rows read on in the text, the states that they carry."""
    restore(strategy, folder)
    if strategy.carry is not None and reads_on:
        world, rows = strategy.world, sum(strategy.carry.rows)
        carried = read_carried(folder, world.reader * rows, rows, world.device)
        strategy.carry.load_state_dict(carried)


def _continue(run: RunDir, config: RunConfig, strategy: Strategy, data: RunData) -> TrainState:
    """Begin with another run's weights, optimizer and place in the data, and note the origin."""
    world, source = strategy.world, config.checkpoint.continue_from
    folder = agreed(world, partial(continued_checkpoint, source, run.continued, run.cache))
    verify_checkpoint(folder, world.rank, world.world_size)
    state, origin = continuation(folder, config, data.stream, data.tokenizer.model_bytes)
    _load(folder, strategy, reads_on=state.first_sample > 0)
    if world.is_main:
        run.check_lock()
        write_json(run.continued, asdict(origin))
    logger.info("continuing %s with its %s", folder, ", ".join(origin.kept))
    return state


def _warn_of_horizons(config: RunConfig) -> None:
    """Warn of memories that hardly forget within a sequence, naming the setting responsible."""
    length, far = config.data.seq_len, {}
    for i, block in enumerate(outline(config.model).blocks):
        memories = [m for m in block.modules() if isinstance(m, WrittenMemory)]
        longest = max((memory.longest_horizon for memory in memories), default=0.0)
        if longest > FAR_HORIZON * length and isinstance(block.layer, WrittenLayer):
            far[config.model.key(i, "max_horizon")] = block.layer.max_horizon, longest
    for key, (setting, longest) in far.items() if not config.data.carry_state else ():
        logger.warning(
            "%s is %s: what forgets slowest does so over %s tokens, far beyond data.seq_len %s, so "
            "hardly learns to; 0 takes data.seq_len",
            key,
            f"{setting:,.10g}",
            f"{longest:,.0f}",
            f"{length:,}",
        )


def _start_from(path: str, strategy: Strategy, cache: Path) -> Path:
    """Load the weights of another run's checkpoint and return the folder it was found in."""
    world = strategy.world
    folder = agreed(world, partial(find_checkpoint, path, cache))
    verify_checkpoint(folder, world.rank, world.world_size)
    restore(strategy, folder, optimizer=False)
    logger.info("starting from the weights of %s", folder)
    return folder


def _warn_of_another_tokenizer(folder: Path, ours: bytes) -> None:
    """Warn if a checkpoint's ids, even if as many, stand for other tokens than ``ours``."""
    if read_regular(folder / TOKENIZER) != ours:
        logger.warning(
            "the tokenizer of %s is not that of data.sets, so its weights know other words by "
            "these ids; sets prepared with --tokenizer %s share it",
            folder,
            folder / TOKENIZER,
        )


def newest_sound(
    store: CheckpointStore,
    world: World,
    *,
    fall_back: bool,
    check_lock: Callable[[], None] = lambda: None,
) -> Path | None:
    """Return the newest undamaged checkpoint, or None if there is none.

    All ranks verify a checkpoint together: each checks a share of the files.

    Args:
        fall_back: set a damaged checkpoint aside and try the one before; if false, raise an error.
        check_lock: called on the main rank before a checkpoint is set aside.
    """
    for step in reversed(agreed(world, store.steps)):
        path, error = store.path(step), None
        try:
            verify_checkpoint(path, world.rank, world.world_size)
        except UserError as said:
            error = said
        if not world.any(error is not None):
            return path
        if not fall_back:
            raise error or UserError(f"{path} is damaged: another rank says where")
        logger.warning("skipping %s: %s", path, error or "another rank found it damaged")
        if world.is_main:
            check_lock()
            store.set_aside(step, "damaged")
        world.barrier()
    return None
