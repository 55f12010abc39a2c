"""Restore a checkpoint's weights and optimizer state into an engine on any number of ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.fit import check_parameters, check_states
from gam_scale.checkpoint.shard import PARAM, Shard, StateSpec


class Restorable(Protocol):
    """The side of a :class:`~gam_scale.parallel.strategy.Strategy` that a checkpoint fills."""

    @property
    def states(self) -> Mapping[str, StateSpec]:
        """All states that the optimizer keeps, by key, on whichever rank."""

    def shards(self) -> list[Shard]:
        """Return this rank's parts of parameters and states."""

    def after_write(self, shards: list[Shard]) -> None:
        """Take in what was written to ``shards``."""


def restore(strategy: Restorable, checkpoint: Path, *, optimizer: bool = True) -> None:
    """Set ``strategy`` to what a checkpoint holds; all ranks call this alike.

    Args:
        strategy: of any engine, on any number of ranks.
        checkpoint: the checkpoint's folder, verified.
        optimizer: also restore the optimizer's states; otherwise they become those of a new run. So
            do those of a parameter without states in the checkpoint, such as an imported one.

    Raises:
        UserError: the tensors are of another model or optimizer, or a file is damaged.
    """
    tensors, shards, states = CanonicalTensors(checkpoint), strategy.shards(), strategy.states
    shapes = {shard.name: shard.shape for shard in shards if shard.kind == PARAM}
    saved = tensors.content()
    check_parameters(checkpoint, {key: shape for key, (shape, _) in saved.items()}, shapes)
    if optimizer:
        check_states(checkpoint, saved, states)
    for shard in shards:
        if shard.kind == PARAM or (optimizer and shard.key in saved):
            tensors.load_into([shard])
        else:
            shard.data.fill_(states[shard.key].initial)
    strategy.after_write(shards)
