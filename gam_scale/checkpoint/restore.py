"""Weights and optimizer state of a checkpoint, into an engine on any number of ranks."""

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
        """By key, all that the optimizer keeps, on whichever rank."""

    def shards(self) -> list[Shard]:
        """This rank's parts."""

    def written(self, shards: list[Shard]) -> None:
        """Take in what was written to ``shards``."""


def restore(strategy: Restorable, checkpoint: Path, *, optimizer: bool = True) -> None:
    """Bring ``strategy`` to what a checkpoint holds; called by all ranks alike.

    Args:
        strategy: on any number of ranks, of any engine.
        checkpoint: its folder, verified.
        optimizer: also its state; else that of a new run. A parameter of which the checkpoint has
            no states, as one that was imported from weights, has those of a new run too.

    Raises:
        UserError: tensors of another model or optimizer, or a damaged file.
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
    strategy.written(shards)
