"""The stages of a run: stretches of steps that each have a length, a batch and a mix of their own.

A run without ``train.stages`` is one stage, so that whoever asks for lengths, batches or tokens
asks the stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gam_scale.config.names import set_names
from gam_scale.config.sections import DataConfig, RunConfig
from gam_scale.config.training import StageConfig, TrainConfig
from gam_scale.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage, with nothing left to a default."""

    first_step: int
    """From 0."""
    steps: int
    seq_len: int
    global_batch_size: int
    micro_batch_size: int
    weights: tuple[float, ...]
    """Of each of ``data.sets``; 0: not read."""

    @property
    def tokens_per_step(self) -> int:
        """Over all ranks."""
        return self.global_batch_size * self.seq_len

    @property
    def tokens(self) -> int:
        """Of all its steps."""
        return self.steps * self.tokens_per_step


def stages_of(config: RunConfig) -> list[Stage]:
    """The stages that ``train.steps`` steps have, in order, at least one.

    A run that ends early has fewer than its config names, one that goes on past their end stays
    in the last. Where ``train.steps`` is not known yet, a single stage has 0 steps.

    Raises:
        UserError: a stage's weights name a set that is not there.
    """
    train, end = config.train, config.train.steps
    given = train.stages or [StageConfig(steps=end)]
    stages: list[Stage] = []
    for i, one in enumerate(given):
        first = stages[-1].first_step + stages[-1].steps if stages else 0
        if stages and end and first >= end:
            break
        stages.append(
            Stage(
                first_step=first,
                steps=one.steps,
                seq_len=one.seq_len or config.data.seq_len,
                global_batch_size=one.global_batch_size or train.global_batch_size,
                micro_batch_size=one.micro_batch_size or train.micro_batch_size,
                weights=_weights(one, config.data, f"train.stages[{i}].weights"),
            )
        )
    last = stages[-1]
    return [*stages[:-1], replace(last, steps=end - last.first_step if end else last.steps)]


def planned_steps(train: TrainConfig) -> int:
    """Steps as the schedule was made for them: a decay on demand may end the run elsewhere."""
    return train.anneal.of_steps if train.anneal.steps else train.steps


def stage_number(stages: Sequence[Stage], step: int) -> int:
    """Which of the stages 0-based ``step`` is in; past the end of all, the last."""
    begun = [i for i, stage in enumerate(stages) if stage.first_step <= step]
    return begun[-1]


def first_steps(config: RunConfig, steps: int) -> list[Stage]:
    """What decides the first ``steps`` steps: the stages up to there, micro-batches apart."""
    stages = stages_of(replace(config, train=replace(config.train, steps=steps)))
    return [replace(stage, micro_batch_size=0) for stage in stages] if steps else []


def with_steps(config: RunConfig) -> RunConfig:
    """The config with ``train.steps`` as the stages have them, where it leaves them out."""
    train = config.train
    if not train.stages or train.steps or train.epochs:
        return config
    return replace(config, train=replace(train, steps=sum(one.steps for one in train.stages)))


def total_tokens(config: RunConfig) -> int:
    """Of the whole run; 0 where ``train.steps`` is not known."""
    return sum(stage.tokens for stage in stages_of(config))


def mean_over_tokens(config: RunConfig, of_length: Callable[[int], float]) -> float:
    """The mean over the run's tokens of what depends on the length of their sequences, as FLOPs."""
    stages = stages_of(config)
    by_length = {length: of_length(length) for length in {stage.seq_len for stage in stages}}
    if len(by_length) == 1:
        return by_length[stages[0].seq_len]
    weighted = sum(stage.tokens * by_length[stage.seq_len] for stage in stages)
    return weighted / total_tokens(config)


def _weights(one: StageConfig, data: DataConfig, where: str) -> tuple[float, ...]:
    """Of each set, by its path or by the last part of it, where no other set shares that."""
    given = dict(one.weights)
    weights = []
    names = set_names(data)
    for entry, name in zip(data.sets, names, strict=True):
        weights.append(given.pop(entry.path, given.pop(name, entry.weight)))
    if given:
        known = ", ".join(names)
        raise UserError(f"{where} names {next(iter(given))}, no set; expected of {known}")
    if not sum(weights) and data.sets:
        raise UserError(f"{where} leaves out every set; expected one above 0")
    return tuple(weights)
