"""A run from its config to its summary: open, resume, train, report."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch

from gam_scale.checkpoint.state import TrainState
from gam_scale.config import AnnealConfig, RunConfig
from gam_scale.config.rules import check, check_ranks
from gam_scale.config.stages import stages_of, total_tokens, with_steps
from gam_scale.data.chat_template import ChatTemplate
from gam_scale.data.set_files import cache_folder
from gam_scale.data.shards import chat_template_of
from gam_scale.data.stream import TrainStream
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import Stopped, UserError
from gam_scale.files import write_json
from gam_scale.hardware.compiler import can_compile
from gam_scale.hyperparameters import Chosen, auto_settings, choose, with_settings
from gam_scale.model.lm import outline
from gam_scale.parallel import world as ranks
from gam_scale.parallel.agreed import agreed
from gam_scale.parallel.build import build_strategy, check_engine
from gam_scale.parallel.optimizer import check_optimizer, parameter_groups, state_bytes
from gam_scale.parallel.watchdog import Watchdog
from gam_scale.parallel.world import World
from gam_scale.run.anneal import find_anneal, note_anneal, with_anneal
from gam_scale.run.chosen import note_chosen, numbers_of_begun_run
from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import note_start
from gam_scale.run.lock import RunLock
from gam_scale.run.restarts import count_start
from gam_scale.strict import to_dict
from gam_scale.train.batches import Batches
from gam_scale.train.from_mirror import Opened, open_mirror
from gam_scale.train.hooks.sampling import check_prompt
from gam_scale.train.hooks.standard import standard_hooks
from gam_scale.train.loop import Hook, Loop, Outcome
from gam_scale.train.mirror import Mirror
from gam_scale.train.preflight import preflight
from gam_scale.train.reading import RunData, open_data, ready_tasks
from gam_scale.train.rollback import Rollbacks
from gam_scale.train.saver import Saver
from gam_scale.train.session import Session
from gam_scale.train.signals import StopRequest
from gam_scale.train.sinks import MetricLog, setup_logging
from gam_scale.train.start import check_same_data, check_start, start_or_resume
from gam_scale.train.summary import finish, retract, show_summary

logger = logging.getLogger("gam_scale")

MANY_EPOCHS = 40
"""Epochs above which a run is warned that it repeats its data too often."""


def pretrain(
    config: RunConfig, *, fresh: bool, hooks: Sequence[Hook] = (), anneal: int = 0
) -> bool:
    """Train ``config`` to its end, resuming the run that its run directory holds.

    Args:
        config: as read from the file; resolved here against data and tokenizer.
        fresh: start over if the run directory holds an earlier run. A job that its scheduler
            restarts still goes on with the run that it began itself.
        hooks: the caller's hooks, in addition to those that every run has; see :class:`Hook`.
        anneal: begin a decay of this many steps now, at the newest checkpoint, and end the run
            with it; 0: begin none.

    Returns:
        Whether the run is finished; if not, a signal stopped it and its state is saved.

    Raises:
        UserError: something the user gave cannot work, found before training starts if possible.
    """
    timeout_s = config.parallel.timeout_s
    stop = StopRequest()
    try:
        # The real path tells jobs apart: two clones may both train runs/quickstart at one port.
        job = f"{os.environ.get('SLURM_JOB_ID', '')} {os.path.realpath(config.log.run_dir)}"
        check_engine(config.parallel.engine)
        device, engine = config.parallel.device, config.parallel.engine
        world = ranks.start(device, job, timeout_s, lambda: stop.requested, engine)
        check_ranks(config, world.world_size)
        check_optimizer(config.train.optimizer)
        world = world.arranged(config.parallel)
        with (
            Watchdog(world, timeout_s) as watchdog,
            RunLock(config.log.run_dir) if world.is_main else nullcontext() as lock,
        ):
            try:
                finished = _pretrain(
                    config, world, stop, watchdog, lock, fresh=fresh, hooks=hooks, anneal=anneal
                )
                ranks.release()
                return finished
            except Stopped:
                raise
            except Exception as error:
                # For the log files, which outlive the terminal. The caller prints the error.
                if logger.handlers:
                    kind, quiet = type(error).__name__, {"on_bar": True}
                    trace = not isinstance(error, UserError)
                    said = "rank %d: %s: %s"
                    logger.error(said, world.rank, kind, error, extra=quiet, exc_info=trace)
                raise
    except Stopped:
        logger.warning("stopped by a signal before training began; the same command goes on")
        return False
    except Exception:
        ranks.abandon()
        raise
    finally:
        ranks.stop()
        stop.close()


def _pretrain(
    config: RunConfig,
    world: World,
    stop: StopRequest,
    watchdog: Watchdog,
    lock: RunLock | None,
    *,
    fresh: bool,
    hooks: Sequence[Hook],
    anneal: int,
) -> bool:
    run = RunDir(config.log.run_dir, *([lock.check] if lock is not None else []))
    opened = open_mirror(run, config, world, fresh=fresh)
    data = open_data(config, cache_folder(config.data.cache_dir, run.cache))
    begun = agreed(world, partial(numbers_of_begun_run, run, config, fresh=fresh))
    config, chosen = resolve(config, data.tokenizer, data.stream, begun)
    decay = AnnealConfig()
    if not (fresh and run.fresh_removes()):
        decay = agreed(world, partial(find_anneal, run, config, anneal))
    config = with_anneal(config, decay)
    check_ranks(config, world.world_size)  # again, now that all numbers are known
    agreed(world, partial(check_start, run, config, data, fresh=fresh))
    tasks = agreed(world, partial(ready_tasks, config, data))
    stop.check(world)
    fingerprint = data.stream.fingerprint()
    check_same_data(world, fingerprint)
    agreed(world, partial(_open, run, config, fingerprint, chosen, fresh=fresh))
    setup_logging(run.path, world.rank)
    if chosen is not None:
        logger.info("%s", chosen)
    agreed(world, partial(note_anneal, run, decay))
    mirror = _begin_mirror(opened)
    if config.parallel.preflight:
        watchdog.at(0, "checking the ranks")
        size = _checkpoint_bytes(config)
        preflight(world, run.checkpoints.folder, size, data.splits)
    stop.check(world)
    compiled = _whether_to_compile(config, world)
    strategy = build_strategy(config, world, compiled=compiled)
    state = start_or_resume(run, config, strategy, data)
    outcome: Outcome = "finished"
    if state.step < config.train.steps or (
        state.to_evaluate and not agreed(world, run.summary.exists)
    ):
        stop.check(world)
        if world.is_main:
            retract(run)
            note_start(run, state.step, world.world_size)
        _announce(config, world, data)
        model_bytes = data.tokenizer.model_bytes
        saver = Saver(run.checkpoints, world, config, model_bytes, run.check_lock, mirror)
        session = Session(run, config, strategy, data, saver, stop, watchdog, tasks, hooks)
        outcome = _train(session, state)
    else:
        logger.info("%s is finished: step %d of %d", run.path, state.step, config.train.steps)
        if world.is_main and not run.summary.exists():  # killed: wandb may lack the last lines
            MetricLog(run.path, config, True, config.train.steps, state.step).close()
    if outcome == "finished" and world.is_main:
        _finish(run, world, data, compiled=strategy.compilation.is_on)
    world.barrier()
    if mirror is not None:
        watchdog.at(config.train.steps, "waiting for the mirror")
        mirror.finish(lambda: stop.requested)
    return outcome == "finished"


def _begin_mirror(opened: Opened | None) -> Mirror | None:
    if opened is None:
        return None
    if opened.step is not None:
        logger.info("fetched the checkpoint of step %d from the mirror", opened.step)
    opened.mirror.begin(wipe=opened.wipe)
    return opened.mirror


def _finish(run: RunDir, world: World, data: RunData, *, compiled: bool) -> None:
    run.check_lock()
    finish(run, world, [split.path for split in data.valid], compiled=compiled)
    show_summary(run)


def _checkpoint_bytes(config: RunConfig) -> int:
    model = outline(config.model)
    parameters = model.n_parameters() * torch.float32.itemsize
    return parameters + state_bytes(parameter_groups(model, config))


def _open(run: RunDir, config: RunConfig, data: str, chosen: Chosen | None, *, fresh: bool) -> None:
    """Open the run directory and count the start at once, since it may fail the same every time."""
    run.open(config, fresh=fresh, data=data)
    note_chosen(run, config, chosen)
    newest = (run.checkpoints.steps() or [0])[-1]
    if newest < config.train.steps or not run.summary.exists():
        count_start(run.restarts, newest, config.checkpoint.max_restarts, run.logs)


def _train(session: Session, state: TrainState) -> Outcome:
    """Train from ``state`` until the run ends or a signal stops it; write no summary yet."""
    run, strategy, stop = session.run, session.strategy, session.stop
    rollbacks = Rollbacks()
    while True:
        config = session.config
        run.check_lock()  # MetricLog drops the lines past the step that it starts from
        is_main, steps = strategy.world.is_main, config.train.steps
        with MetricLog(run.path, config, is_main, steps, state.logged_step, state.step) as log:
            batches = Batches(
                config, session.data.stream, strategy.world, state, lambda: stop.requested
            )
            loop = Loop(config, strategy, batches, state, standard_hooks(session, log))
            outcome = loop.run()
        if outcome == "stopped":
            logger.info("stopped by a signal at step %d; the same command resumes", loop.state.step)
        if outcome == "annealing":
            session, state = _anneal(session)
        elif outcome == "spiked":
            state = rollbacks.go_back(session, loop.state)
        else:
            return outcome


def _anneal(session: Session) -> tuple[Session, TrainState]:
    """Return the session and state that a start with ``--anneal-now`` would have from here on."""
    run, world = session.run, session.strategy.world
    decay = agreed(world, partial(find_anneal, run, session.config))
    agreed(world, partial(note_anneal, run, decay))
    session = replace(session, config=with_anneal(session.config, decay))
    session.saver.config = session.config
    if world.is_main:
        run.check_lock()
        write_json(run.config, to_dict(session.config))
    return session, start_or_resume(run, session.config, session.strategy, session.data)


def resolve(
    config: RunConfig, tokenizer: Tokenizer, stream: TrainStream, begun: Mapping[str, float]
) -> tuple[RunConfig, Chosen | None]:
    """Fill in what only the data knows: vocabulary, horizons, template, "auto" and epochs' steps.

    Args:
        config: as read from the file.
        tokenizer: the data's tokenizer.
        stream: the data's stream.
        begun: numbers that the run already has for "auto" settings of the train section.

    Returns:
        The complete config, and what was chosen for the remaining "auto" settings; None if nothing
        was.

    Raises:
        UserError: the vocabulary is smaller than the tokenizer's, a sample's prompt does not fit
            into a sequence, or the chat template is not the data's.
    """
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size is {vocab_size} but the tokenizer has {tokenizer.vocab_size} ids; "
            "expected at least that many, or 0"
        )
    model = replace(config.model.at_length(config.data.seq_len), vocab_size=vocab_size)
    data = replace(config.data, chat_template=_chat_template(config, tokenizer, stream))
    config = with_steps(
        replace(config, model=model, data=data, train=with_settings(config.train, begun))
    )
    chosen = choose(config, stream.epoch_sequences) if auto_settings(config.train) else None
    train = with_settings(config.train, chosen.settings if chosen else {})
    if train.epochs:
        steps = math.ceil(train.epochs * stream.epoch_sequences / train.global_batch_size)
        train = replace(train, steps=steps, epochs=0.0)
    config = replace(config, train=train)
    check(config)
    check_prompt(config, tokenizer)
    return config, chosen


def _chat_template(config: RunConfig, tokenizer: Tokenizer, stream: TrainStream) -> str:
    """Return the data's chat template, or the config's if the data has none."""
    given, found = config.data.chat_template, chat_template_of(stream.splits)
    if given and found and given != found:
        raise UserError(
            "data.chat_template is not the one that data.sets were prepared with; expected none, "
            "which takes theirs"
        )
    if given:
        ChatTemplate(given, tokenizer)  # raises if it is not a valid template
    return found or given


def _whether_to_compile(config: RunConfig, world: World) -> bool:
    if config.train.compile == "off":
        return False
    possible, reason = can_compile(world.device)
    if not possible and config.train.compile == "on":
        raise UserError(f"train.compile is on but cannot work here: {reason}; expected auto or off")
    if not possible:
        logger.info("running eager, without torch.compile: %s", reason)
    return possible


def _announce(config: RunConfig, world: World, data: RunData) -> None:
    stages = stages_of(config)
    batches = [f"{s.steps} steps of {s.global_batch_size} x {s.seq_len} tokens" for s in stages]
    epochs = data.stream.epochs(stages)
    logger.info(
        "%s model, %s parameters; %s (%.3g tokens, %.2f epochs)",
        " + ".join(dict.fromkeys(config.model.layer_kinds())),
        f"{outline(config.model).n_parameters():,}",
        ", then ".join(batches),
        total_tokens(config),
        epochs,
    )
    if epochs > MANY_EPOCHS:
        logger.warning(
            "the data is read %s times over; past some %d epochs a model learns nothing new from "
            "it (arXiv 2305.16264): more text, or fewer train.steps, would do",
            f"{epochs:,.0f}",
            MANY_EPOCHS,
        )
    logger.info(
        "engine %s, %d rank(s) on %s, %s",
        config.parallel.engine,
        world.world_size,
        world.device.type,
        config.train.precision,
    )
    for info, path in ((split.info, split.path) for split in data.train if split.info.answers):
        logger.info(
            "%s: answers alone carry loss, %s of %s tokens",
            path,
            f"{info.learned[0]:,}",
            f"{info.tokens:,}",
        )
    validated = {split.path for split in data.valid}
    if unseen := [split.path for split in data.train if split.path not in validated]:
        logger.info("without a validation split: %s", ", ".join(unseen))
