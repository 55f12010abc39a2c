"""The stages of a run: stretches of steps with their own sequence length, batch and mix of data.

A run without ``train.stages`` has one stage, so code that needs lengths, batches or tokens can
always ask the stages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gam_scale.config.names import set_names
from gam_scale.config.sections import DataConfig, RunConfig
from gam_scale.config.training import StageConfig, TrainConfig
from gam_scale.errors import UserError


@dataclass(frozen=True)
class Stage:
    """One stage, with every setting filled in."""

    first_step: int
    """Counted from 0."""
    steps: int
    seq_len: int
    global_batch_size: int
    micro_batch_size: int
    weights: tuple[float, ...]
    """One for each of ``data.sets``; 0: the set is not read."""

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one step over all ranks."""
        return self.global_batch_size * self.seq_len

    @property
    def tokens(self) -> int:
        """Tokens of all steps of the stage."""
        return self.steps * self.tokens_per_step


def stages_of(config: RunConfig) -> list[Stage]:
    """Return the stages of ``train.steps`` steps in order, at least one.

    A run that ends early has fewer stages than its config names; a run that goes on past their end
    stays in the last. While ``train.steps`` is not known, the stage of a run without
    ``train.stages`` has 0 steps.

    Raises:
        UserError: a stage's weights name a set that is not there, or leave out every set.
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
    """Return the steps that the schedule is for; a decay on demand may end the run elsewhere."""
    return train.anneal.of_steps if train.anneal.steps else train.steps


def stage_number(stages: Sequence[Stage], step: int) -> int:
    """Return the number of the stage that 0-based ``step`` is in: the last one past their end."""
    begun = [i for i, stage in enumerate(stages) if stage.first_step <= step]
    return begun[-1]


def first_steps(config: RunConfig, steps: int) -> list[Stage]:
    """Return what decides the first ``steps`` steps: their stages, but for micro-batch sizes."""
    stages = stages_of(replace(config, train=replace(config.train, steps=steps)))
    return [replace(stage, micro_batch_size=0) for stage in stages] if steps else []


def with_steps(config: RunConfig) -> RunConfig:
    """Return the config with ``train.steps`` filled in from its stages, if it leaves them out."""
    train = config.train
    if not train.stages or train.steps or train.epochs:
        return config
    return replace(config, train=replace(train, steps=sum(one.steps for one in train.stages)))


def total_tokens(config: RunConfig) -> int:
    """Return the tokens of the whole run; 0 while ``train.steps`` is not known."""
    return sum(stage.tokens for stage in stages_of(config))


def mean_over_tokens(config: RunConfig, of_length: Callable[[int], float]) -> float:
    """Return the mean over the run's tokens of a figure by sequence length, such as FLOPs."""
    stages = stages_of(config)
    by_length = {length: of_length(length) for length in {stage.seq_len for stage in stages}}
    if len(by_length) == 1:
        return by_length[stages[0].seq_len]
    weighted = sum(stage.tokens * by_length[stage.seq_len] for stage in stages)
    return weighted / total_tokens(config)


def _weights(one: StageConfig, data: DataConfig, where: str) -> tuple[float, ...]:
    """Return the stage's weight of each set, which it gives by the set's path or name."""
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
