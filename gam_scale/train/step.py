"""One optimizer step: the same for a run, for recall, for the benchmarks and for the tests."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gam_scale import pulse
from gam_scale.data.packing import Batch
from gam_scale.model.widest import widest
from gam_scale.parallel.strategy import Strategy


class StepResult(NamedTuple):
    """What a step came to, scalars that are left on their device."""

    loss_sum: Tensor
    """Over this rank's targets, in the :func:`widest` dtype of its device."""
    n_targets: int
    """Of all ranks."""
    grad_norm: Tensor
    """Global, before clipping. Not finite: the step was not applied, on any rank."""


def train_step(
    strategy: Strategy,
    batches: Sequence[Batch],
    lr: float,
    *,
    max_norm: float = 1.0,
    n_targets: int | None = None,
    transfer: Callable[[Sequence[Batch]], Iterable[Batch]] | None = None,
) -> StepResult:
    """Train on this rank's micro-batches, as many on every rank; nothing waits for the device.

    The loss is the mean over the targets of all ranks and micro-batches, however they are split.

    Args:
        strategy: the engine, ready to train.
        batches: in CPU memory.
        lr: the learning rate of this step.
        max_norm: of the gradients, at most; 0: no clipping.
        n_targets: of all ranks together, where the caller has summed them with other numbers;
            None: summed here.
        transfer: brings the batches to the device one by one; None: each when it is its turn.
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
    """Tokens that these batches, in CPU memory, predict."""
    return sum(batch.num_targets for batch in batches)
