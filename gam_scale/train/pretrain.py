"""A run from its config to its summary: open, resume, train, report."""

import logging
import math
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.carried import read_carried
from gam_scale.checkpoint.store import CheckpointStore, TrainState, load_state
from gam_scale.checkpoint.store import resolve as find_checkpoint
from gam_scale.checkpoint.verify import verify_checkpoint
from gam_scale.config import DataSetConfig, RunConfig
from gam_scale.config_rules import check
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import TrainStream, open_split
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import Stopped, UserError
from gam_scale.files import write_json
from gam_scale.hardware import can_compile, device_peak_flops
from gam_scale.model.lm import outline
from gam_scale.model.memory.gate import DecayGate
from gam_scale.parallel import world as ranks
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.watchdog import Watchdog
from gam_scale.parallel.world import World
from gam_scale.train.branch import branch_checkpoint
from gam_scale.train.continuation import continuation
from gam_scale.train.first_step import FirstStep
from gam_scale.train.goodput import note_first_step, note_start
from gam_scale.train.health import Health
from gam_scale.train.lock import RunLock
from gam_scale.train.loop import Loop
from gam_scale.train.metrics import StepMetrics, Throughput
from gam_scale.train.preflight import preflight
from gam_scale.train.restarts import count_start, restart_number
from gam_scale.train.rundir import RunDir
from gam_scale.train.saver import Saver
from gam_scale.train.signals import StopRequest
from gam_scale.train.sinks import MetricLog, setup_logging
from gam_scale.train.summary import finish, retract, show_summary

logger = logging.getLogger("gam_scale")

MANY_EPOCHS = 40
"""Repeating data more often than that is worth a warning."""

FAR_HORIZON = 4
"""Times a sequence's length from which on a gate's first horizon is warned of."""


def pretrain(config: RunConfig, *, fresh: bool) -> bool:
    """Train ``config`` to its end, resuming what its run directory holds.

    Args:
        config: as read; resolved here against data and tokenizer.
        fresh: start over where the run directory holds an earlier run; a job that its scheduler
            restarts goes on with what it began itself.

    Returns:
        Whether the run is finished; if not, a signal stopped it and its state is saved.

    Raises:
        UserError: something the user gave cannot work; said before training starts.
    """
    timeout_s = config.parallel.timeout_s
    stop = StopRequest()
    try:
        place = config.parallel.device, config.log.run_dir, timeout_s
        world = ranks.start(*place, lambda: stop.requested)
        with (
            Watchdog(world, timeout_s) as watchdog,
            RunLock(config.log.run_dir) if world.is_main else nullcontext() as lock,
        ):
            try:
                finished = _pretrain(config, world, stop, watchdog, lock, fresh=fresh)
                ranks.release()
                return finished
            except Stopped:
                raise
            except Exception as error:
                # For the logs, which outlive the terminal; who prints it is the caller's business.
                if logger.handlers:
                    kind, quiet = type(error).__name__, {"on_bar": True}
                    trace = not isinstance(error, UserError)
                    said = "rank %d: %s: %s"
                    logger.error(said, world.rank, kind, error, extra=quiet, exc_info=trace)
                raise
    except Stopped:
        logger.warning("stopped by a signal before training began; the same command goes on")
        return False
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
) -> bool:
    run = RunDir(config.log.run_dir)
    cache = config.data.cache_dir or str(run.cache)
    train = open_split(config.data.sets, "train", cache)
    valid = _open_validation(config.data.sets, train, cache)
    tokenizer = train[0].load_tokenizer()
    stream = TrainStream(
        train,
        [entry.weight for entry in config.data.sets],
        config.data.seq_len,
        config.data.documents,
        config.train.seed,
        config.data.shuffle_tokens,
        config.train.global_batch_size if config.data.carry_state else 0,
    )
    config = resolve(config, tokenizer, stream)
    if not run.checkpoints.steps() or (fresh and not restart_number()):
        _check_start(config, stream, tokenizer)
    stop.check(world)
    if world.is_main:
        run.open(config, fresh=fresh, data=stream.fingerprint())
    world.barrier()
    setup_logging(run.path, world.rank)
    if config.parallel.preflight:
        watchdog.at(0, "checking the ranks")
        n_parameters = outline(config.model).n_parameters()
        preflight(world, run.checkpoints.folder, n_parameters, [*train, *valid])
    stop.check(world)
    compiled, validated = _whether_to_compile(config, world), [split.path for split in valid]
    strategy = build_strategy(config, world, compiled=compiled)
    state = _start_or_resume(run, config, strategy, stream, tokenizer)
    if state.step >= config.train.steps and not (state.to_evaluate and not run.summary.exists()):
        logger.info("%s is finished: step %d of %d", run.path, state.step, config.train.steps)
        if world.is_main:
            if not run.summary.exists():  # killed, and wandb may lack the last lines
                MetricLog(run.path, config, True, config.train.steps, state.step).close()
            finish(run, world, validated, compiled=compiled)
            show_summary(run)
        world.barrier()
        return True
    stop.check(world)
    if world.is_main:
        retract(run)
        note_start(run, state.step, world.world_size)
        count_start(run.restarts, state.step, config.checkpoint.max_restarts, run.logs)
    _announce(config, world, stream, compiled)
    if unseen := [split.path for split in train if split.path not in validated]:
        logger.info("without a validation split: %s", ", ".join(unseen))
    check_lock = lock.check if lock is not None else lambda: None
    saver = Saver(run.checkpoints, world, config, tokenizer.model_bytes, check_lock)
    token_bytes = tokenizer.token_bytes()
    while True:
        metrics = _metrics(config, world, train, run)
        note = partial(note_first_step, run) if world.is_main else lambda: None
        with (
            MetricLog(
                run.path, config, world.is_main, config.train.steps, state.logged_step
            ) as log,
            FirstStep(note, compiled) as first_step,
        ):
            loop = Loop(
                config,
                saver,
                strategy,
                stream,
                valid,
                token_bytes,
                metrics,
                log,
                stop,
                watchdog,
                state,
                first_step.done,
            )
            outcome = loop.run()
        if outcome != "spiked":
            break
        state = _roll_back(run, config, strategy, stream, tokenizer, loop.state)
    if outcome == "stopped":
        logger.info("stopped by a signal at step %d; the same command resumes", loop.state.step)
    elif world.is_main:
        finish(run, world, validated, compiled=compiled)
        show_summary(run)
    world.barrier()
    return outcome == "finished"


def _open_validation(
    entries: list[DataSetConfig], train: list[TokenSplit], cache: str
) -> list[TokenSplit]:
    """The validation splits of the sets that have one; prepare_data makes sets without."""
    here = [split.manifest.splits.get("valid") for split in train]
    having = [e for e, info in zip(entries, here, strict=True) if info and info.tokens > 1]
    return open_split(having, "valid", cache) if having else []


def _check_start(config: RunConfig, stream: TrainStream, tokenizer: Tokenizer) -> None:
    """Refuse another run to begin with that cannot be, before anything is written or removed."""
    if config.checkpoint.continue_from:
        continuation(config, stream, tokenizer.model_bytes)
    if config.checkpoint.branch_of:
        branch_checkpoint(config, stream.fingerprint())
    if config.checkpoint.init_from:
        find_checkpoint(config.checkpoint.init_from)


def _roll_back(
    run: RunDir,
    config: RunConfig,
    strategy: Strategy,
    stream: TrainStream,
    tokenizer: Tokenizer,
    spiked: TrainState,
) -> TrainState:
    """The state of the last checkpoint, going on with the batch after the spike's."""
    state = _start_or_resume(run, config, strategy, stream, tokenizer)
    left_out = spiked.left_out + spiked.step - state.step
    logger.warning("back to step %d, leaving out %d batches", state.step, spiked.step - state.step)
    return replace(state, left_out=left_out)


def resolve(config: RunConfig, tokenizer: Tokenizer, stream: TrainStream) -> RunConfig:
    """Fill in what only the data knows: vocabulary size, horizons and, from epochs, steps.

    Raises:
        UserError: the vocabulary does not hold the tokenizer's.
    """
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size is {vocab_size} but the tokenizer has {tokenizer.vocab_size} ids; "
            "expected at least that many, or 0"
        )
    train = config.train
    if train.epochs:
        steps = math.ceil(train.epochs * stream.epoch_sequences / train.global_batch_size)
        train = replace(train, steps=steps, epochs=0.0)
    _, longest = config.model.memory.horizons(config.data.seq_len)
    memory = replace(config.model.memory, max_horizon=longest)
    model = replace(config.model, vocab_size=vocab_size, memory=memory)
    config = replace(config, model=model, train=train)
    check(config)
    return config


def _start_or_resume(
    run: RunDir, config: RunConfig, strategy: Strategy, stream: TrainStream, tokenizer: Tokenizer
) -> TrainState:
    world = strategy.world
    newest = _newest_sound(run.checkpoints, world, fall_back=config.checkpoint.fall_back)
    if newest is None and config.checkpoint.branch_of:
        newest = branch_checkpoint(config, stream.fingerprint())
        verify_checkpoint(newest, world.rank, world.world_size)
        if world.is_main:
            run.take_metrics(config.checkpoint.branch_of, load_state(newest).step)
    if newest is None and world.is_main:
        run.continued.unlink(missing_ok=True)
    if newest is None and config.checkpoint.continue_from:
        return _continue(run, config, strategy, stream, tokenizer)
    if newest is None:
        if config.checkpoint.init_from:
            _start_from(config.checkpoint.init_from, strategy)
        else:
            initialise(strategy, config)
            _warn_of_horizons(config)
        return TrainState()
    state = load_state(newest)
    # An imported checkpoint has seen no data of ours.
    if state.data_fingerprint and state.data_fingerprint != stream.fingerprint():
        raise UserError(
            f"the data of {run.path} has changed since step {state.step} was saved; expected the "
            "same prepared sets, another log.run_dir, or --fresh to start over"
        )
    _load(newest, strategy, state, reads_on=True)
    logger.info("resuming from %s", newest)
    return state


def _load(folder: Path, strategy: Strategy, state: TrainState, *, reads_on: bool) -> None:
    """Weights, moments and, where its rows read on in the text, the states that they carry."""
    shards = strategy.shards()
    CanonicalTensors(folder).load_into(shards)
    strategy.written(shards, state.optimizer_steps)
    if strategy.module.carry is not None and reads_on:
        world, rows = strategy.world, sum(strategy.module.carry.rows)
        carried = read_carried(folder, world.rank * rows, rows, world.device)
        strategy.module.carry.load_state_dict(carried)


def _continue(
    run: RunDir, config: RunConfig, strategy: Strategy, stream: TrainStream, tokenizer: Tokenizer
) -> TrainState:
    """Begin with another run's weights, optimizer and place in the data; note that."""
    folder, state, origin = continuation(config, stream, tokenizer.model_bytes)
    verify_checkpoint(folder, strategy.world.rank, strategy.world.world_size)
    _load(folder, strategy, state, reads_on=state.first_sample > 0)
    if strategy.world.is_main:
        write_json(run.continued, asdict(origin))
    logger.info("continuing %s with its %s", folder, ", ".join(origin.kept))
    return state


def _warn_of_horizons(config: RunConfig) -> None:
    gates = [m for m in outline(config.model).modules() if isinstance(m, DecayGate)]
    longest = max((gate.longest_horizon for gate in gates), default=0.0)
    length = config.data.seq_len
    if longest > FAR_HORIZON * length and not config.data.carry_state:
        logger.warning(
            "model.memory.max_horizon is %s tokens, far beyond data.seq_len %s: the slowest gates "
            "forget nothing within a sequence, so hardly learn to; 0 takes data.seq_len",
            f"{config.model.memory.max_horizon:,.0f}",
            f"{length:,}",
        )


def _start_from(path: str, strategy: Strategy) -> None:
    """The weights of another run's checkpoint, as a start."""
    folder, shards = find_checkpoint(path), strategy.shards()
    verify_checkpoint(folder, strategy.world.rank, strategy.world.world_size)
    CanonicalTensors(folder).load_into(shards, moments=False)
    strategy.written(shards, optimizer_steps=0)
    logger.info("starting from the weights of %s", folder)


def _newest_sound(store: CheckpointStore, world: World, *, fall_back: bool) -> Path | None:
    """The newest checkpoint, verified by all ranks together; each checks a share of the files."""
    for step in reversed(store.steps()):
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
            store.set_aside(step)
        world.barrier()
    return None


def _whether_to_compile(config: RunConfig, world: World) -> bool:
    if config.train.compile == "off":
        return False
    possible, reason = can_compile(world.device)
    if not possible and config.train.compile == "on":
        raise UserError(f"train.compile is on but cannot work here: {reason}; expected auto or off")
    if not possible:
        logger.info("running eager, without torch.compile: %s", reason)
    return possible


def _metrics(config: RunConfig, world: World, train: list[TokenSplit], run: RunDir) -> StepMetrics:
    peak = device_peak_flops(world.device, config.train.precision)
    logger.info("peak %.0f GFLOP/s per rank (%s)", peak.flops / 1e9, peak.source)
    text_bytes = sum(split.info.bytes for split in train)
    return StepMetrics(
        world,
        Throughput(world.device),
        flops_per_token=3.0 * outline(config.model).flops_per_token(config.data.seq_len),
        peak_flops=peak.flops * world.world_size,
        bytes_per_token=text_bytes / sum(split.tokens for split in train),
        health=Health(world, run.ranks),
    )


def _announce(config: RunConfig, world: World, stream: TrainStream, compiled: bool) -> None:
    tokens = config.train.steps * config.train.global_batch_size * config.data.seq_len
    epochs = config.train.steps * config.train.global_batch_size / stream.epoch_sequences
    logger.info(
        "%s model, %s parameters; %d steps of %d sequences of %d tokens (%.3g tokens, %.2f epochs)",
        " + ".join(dict.fromkeys(config.model.layer_kinds())),
        f"{outline(config.model).n_parameters():,}",
        config.train.steps,
        config.train.global_batch_size,
        config.data.seq_len,
        tokens,
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
        "engine %s, %d rank(s) on %s, %s, %s",
        config.parallel.engine,
        world.world_size,
        world.device.type,
        config.train.precision,
        "compiled blocks (the first step compiles)" if compiled else "eager",
    )
