"""The rules on which settings of a run go together."""

import re
from dataclasses import replace

from gam_scale.config.axes import Axes
from gam_scale.config.names import set_names, validated_names
from gam_scale.config.sections import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ParallelConfig,
    RunConfig,
)
from gam_scale.config.stages import planned_steps, stages_of
from gam_scale.config.training import TrainConfig
from gam_scale.errors import UserError
from gam_scale.strict import is_auto, shown

LONGEST_TAG = 64
"""Most characters of a tag, which is wandb's limit."""


def check(config: RunConfig) -> None:
    """Refuse combinations that cannot work; each message names the keys and what would work."""
    _check_parallel(config.parallel)
    config.model.check()
    _check_length(config)
    _check_profile(config.train)
    if config.log.noise_every:
        _check_noise(config.parallel)
    if config.data.carry_state:
        _check_carry_state(config)
    if config.log.sample_prompt and config.log.sample_prompts:
        raise UserError(
            "log.sample_prompt and log.sample_prompts are both given; expected one of them"
        )
    _check_start(config.checkpoint)
    _check_sets(config.data)
    _check_validation(config)
    _check_steps(config.train)
    if config.train.stages:
        _check_stages(config)
    _check_tags(config.log)


def check_ranks(config: RunConfig, world_size: int) -> None:
    """Refuse settings that do not fit ``world_size`` ranks.

    Raises:
        UserError: naming the setting; :meth:`Axes.of` raises it as well.
    """
    readers, rows = Axes.of(config.parallel, world_size).readers, config.train.global_batch_size
    if config.data.carry_state and not is_auto(rows) and rows % readers:
        raise UserError(
            f"train.global_batch_size is {rows}, which the {readers} ranks do not divide; expected "
            "a multiple of them with data.carry_state"
        )
    for stage in stages_of(config) if config.log.noise_every and readers == 1 else []:
        rows, micro = stage.global_batch_size, stage.micro_batch_size
        if not is_auto(rows) and rows <= micro:
            raise UserError(
                f"log.noise_every is {config.log.noise_every}, but a step of {rows} sequences is "
                f"one micro-batch of train.micro_batch_size {micro}, on one rank; expected a "
                "smaller one, of each of train.stages too, or log.noise_every 0"
            )


def _check_length(config: RunConfig) -> None:
    model, length, ranks = config.model, config.data.seq_len, config.parallel.context
    if length % ranks:
        raise UserError(
            f"parallel.context is {ranks}, which does not divide data.seq_len {length}; expected "
            "a divisor"
        )
    shared = f", cut over parallel.context {ranks} ranks,"
    model.check_length(length // ranks, f"data.seq_len is {length}{shared * (ranks > 1)}")
    if model.position == "learned" and length > model.max_seq_len:
        raise UserError(
            f"data.seq_len is {length} but model.max_seq_len gives {model.max_seq_len} "
            "positions; expected data.seq_len at most that, or model.position none"
        )


def _check_profile(train: TrainConfig) -> None:
    steps = train.profile
    if steps and (len(steps) != 2 or steps[0] > steps[1]):
        raise UserError(
            f"train.profile is {steps}; expected two steps, the first and the last, such as "
            "[20, 22], or none"
        )


def _check_carry_state(config: RunConfig) -> None:
    kinds = {layer.kind for layer in config.model.stack() if not layer.by_pieces}
    refused = {
        f"{' and '.join(sorted(kinds))} layers": (bool(kinds), "gam and mamba2 blocks only"),
        "model.position learned": (config.model.position == "learned", "none or rotary"),
        f"parallel.context {config.parallel.context}": (config.parallel.context > 1, "1"),
        f"{len(config.data.sets)} data.sets": (len(config.data.sets) > 1, "one set"),
        "train.stages": (bool(config.train.stages), "none"),
        "train.spike_ratio": (config.train.spike_ratio > 0, "0, since it leaves out text"),
        "train.global_batch_size auto": (is_auto(config.train.global_batch_size), "a number"),
    }
    for what, (is_there, expected) in refused.items():
        if is_there:
            raise UserError(
                f"data.carry_state does not go with {what}; expected {expected}, or carry_state "
                "false"
            )


def _check_noise(parallel: ParallelConfig) -> None:
    if parallel.engine == "fsdp" or parallel.context > 1:
        raise UserError(
            f"log.noise_every needs gradients of whole micro-batches, which parallel.engine "
            f"{parallel.engine} with context {parallel.context} cuts over ranks; expected engine "
            "torch or deepspeed with context 1, or log.noise_every 0"
        )


def _check_start(checkpoint: CheckpointConfig) -> None:
    names = ("branch_of", "init_from", "continue_from")
    starts = {name: getattr(checkpoint, name) for name in names}
    given = [f"checkpoint.{name} is {path}" for name, path in starts.items() if path]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}; expected at most one of them")


def _check_sets(data: DataConfig) -> None:
    if not data.sets:
        raise UserError(
            'data.sets is empty; expected at least one {"path": FOLDER} made by '
            "tools/prepare_data.py"
        )
    for i, entry in enumerate(data.sets):
        if not entry.path:
            raise UserError(f"data.sets[{i}].path is empty; expected a folder or URL of shards")


def _check_validation(config: RunConfig) -> None:
    names = validated_names(config)
    for key, given in {"sets": config.eval.sets, "tasks": config.eval.tasks}.items():
        for name in given:
            if not re.fullmatch(r"[\w.-]+", name):
                raise UserError(
                    f"eval.{key} has the name {shown(name)}; expected letters, digits, '_', '-' "
                    "and '.'"
                )
    for name, entry in config.eval.sets.items():
        if names.count(name) > 1:
            raise UserError(
                f"eval.sets.{name} has the name of a set of data.sets, which has a curve by that "
                "name already; expected another"
            )
        if not entry.path and entry.split == "train":
            raise UserError(
                f"eval.sets.{name} is the train split of data.sets; expected another split, or "
                "the path of a set"
            )
    best = config.checkpoint.best
    if best and best not in names:
        known = ", ".join(names) or f"none, as data.sets is {set_names(config.data)[0]} alone"
        raise UserError(
            f"checkpoint.best is {shown(best)}; expected nothing, or a set that is validated on by "
            f"itself: {known}"
        )
    if best and not config.checkpoint.keep_best:
        raise UserError(
            f"checkpoint.best is {shown(best)} but checkpoint.keep_best is false, so that none is "
            "kept; expected true, or no checkpoint.best"
        )


def _check_steps(train: TrainConfig) -> None:
    if (train.steps > 0) == (train.epochs > 0):
        raise UserError(
            f"train.steps is {train.steps} and train.epochs is {train.epochs:g}; expected exactly "
            "one of them above 0"
        )
    steps, anneal = planned_steps(train), train.anneal
    if train.steps and not is_auto(train.warmup_steps) and train.warmup_steps > steps:
        raise UserError(
            f"train.warmup_steps is {train.warmup_steps}; expected at most train.steps {steps}"
        )
    if anneal.steps and anneal.from_step + anneal.steps != train.steps:
        raise UserError(
            f"train.anneal begins at {anneal.from_step} and has {anneal.steps} steps but "
            f"train.steps is {train.steps}; expected their sum"
        )


def _check_stages(config: RunConfig) -> None:
    train, longest, ranks = config.train, config.data.seq_len, config.parallel.context
    steps = sum(one.steps for one in train.stages)
    if is_auto(train.global_batch_size):
        raise UserError(
            "train.global_batch_size is auto beside train.stages, which have batches of their own; "
            "expected a number"
        )
    if train.epochs:
        raise UserError(
            f"train.epochs is {train.epochs:g} beside train.stages, which have steps of their own; "
            "expected epochs 0"
        )
    if steps != planned_steps(train):
        raise UserError(
            f"train.stages have {steps} steps in all but train.steps is {planned_steps(train)}; "
            "expected the same, or train.steps 0"
        )
    stages = stages_of(replace(config, train=replace(train, steps=steps)))  # those to come too
    for i, stage in enumerate(stages):
        length, where = stage.seq_len, f"train.stages[{i}].seq_len is {stage.seq_len}"
        if longest % length:
            raise UserError(
                f"{where}, which does not divide data.seq_len {longest}; expected a divisor"
            )
        if length % ranks:
            raise UserError(
                f"{where}, which parallel.context {ranks} does not divide; expected a multiple"
            )
        shared = f", cut over parallel.context {ranks} ranks,"
        config.model.check_length(length // ranks, f"{where}{shared * (ranks > 1)}")
    if all(stage.seq_len < longest for stage in stages):
        raise UserError(
            f"no stage of train.stages has data.seq_len {longest}; expected data.seq_len "
            f"{max(stage.seq_len for stage in stages)}, that of the longest"
        )


def _check_tags(log: LogConfig) -> None:
    for i, tag in enumerate(log.wandb_tags):
        if not 1 <= len(tag) <= LONGEST_TAG:  # wandb would turn itself off once training begins
            raise UserError(
                f"log.wandb_tags[{i}] has {len(tag)} characters; wandb takes 1 to {LONGEST_TAG}"
            )


def _check_parallel(parallel: ParallelConfig) -> None:
    engine, offload, stage = parallel.engine, parallel.offload, parallel.zero_stage
    if parallel.device == "mps" and engine != "torch":
        raise UserError(
            f"parallel.device is mps but parallel.engine is {engine}, which knows no Apple GPUs; "
            "expected engine torch, or another device"
        )
    if stage and engine != "deepspeed":
        raise UserError(
            f"parallel.zero_stage is {stage} but parallel.engine is {engine}; expected engine "
            "deepspeed, or stage 0"
        )
    if parallel.deepspeed and engine != "deepspeed":
        raise UserError(
            f"parallel.deepspeed has options but parallel.engine is {engine}; expected engine "
            "deepspeed, or none"
        )
    if parallel.shard_ranks and engine != "fsdp":
        raise UserError(
            f"parallel.shard_ranks is {parallel.shard_ranks} but parallel.engine is {engine}; "
            "expected engine fsdp, or 0"
        )
    possible = {
        "none": True,
        "optimizer": engine == "deepspeed" and stage > 0,
        "parameters": engine == "fsdp" or stage == 3,
    }
    if not possible[offload]:
        wanted = {
            "optimizer": "engine deepspeed with zero_stage 1, 2 or 3",
            "parameters": "engine fsdp, or deepspeed with zero_stage 3",
        }
        raise UserError(
            f"parallel.offload is {offload} with engine {engine} and zero_stage {stage}; expected "
            f"{wanted[offload]}, or none"
        )
    if parallel.offload_dir and (stage != 3 or offload == "none"):
        raise UserError(
            f"parallel.offload_dir is {parallel.offload_dir} with engine {engine}, zero_stage "
            f"{stage} and offload {offload}; expected engine deepspeed with zero_stage 3 and "
            "something to offload, or no folder"
        )
