"""One optimizer step, shared by runs, recall tasks, benchmarks and tests."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gam_scale import pulse
from gam_scale.data.packing import Batch
from gam_scale.model.widest import widest
from gam_scale.parallel.strategy import Strategy


class StepResult(NamedTuple):
    """The results of a step; tensors are scalars that stay on their device."""

    loss_sum: Tensor
    """Summed over this rank's targets, in the :func:`widest` dtype of its device."""
    n_targets: int
    """Number of targets over all ranks."""
    grad_norm: Tensor
    """Global norm before clipping. If it is not finite, no rank has applied the step."""


def train_step(
    strategy: Strategy,
    batches: Sequence[Batch],
    lr: float,
    *,
    max_norm: float = 1.0,
    n_targets: int | None = None,
    transfer: Callable[[Sequence[Batch]], Iterable[Batch]] | None = None,
) -> StepResult:
    """Take one optimizer step on this rank's micro-batches, without waiting for the device.

    Every rank must have as many micro-batches. The loss is the mean over the targets of all ranks
    and micro-batches, however they are split.

    Args:
        strategy: the engine, ready to train.
        batches: the micro-batches, in CPU memory.
        lr: the learning rate of this step.
        max_norm: norm that the gradients are clipped to; 0: no clipping.
        n_targets: targets over all ranks, if the caller has already summed them with other
            numbers; None: they are summed here.
        transfer: brings the batches to the device one by one; None: each is copied at its turn.
    """
    if n_targets is None:
        n_targets = int(strategy.world.sum(count_targets(batches))[0])
    device = strategy.world.device
    sent = transfer(batches) if transfer else (batch.to(device) for batch in batches)
    loss_sum = torch.zeros((), dtype=widest(device), device=device)
    for number, batch in enumerate(sent, 1):
        pulse.beat()
        loss_sum += strategy.backward(batch, 1.0 / n_targets, last=number == len(batches))
    return StepResult(loss_sum, n_targets, strategy.step(lr, max_norm))


def count_targets(batches: Sequence[Batch]) -> int:
    """Return how many tokens these batches, in CPU memory, predict."""
    return sum(batch.num_targets for batch in batches)
