"""Token-weighted validation loss over any number of ranks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.packing import IGNORE, Batch
from gam_scale.model.layout import Layout
from gam_scale.model.widest import widest
from gam_scale.parallel.world import World


@dataclass(frozen=True)
class LossResult:
    """A mean loss and what it was measured over."""

    loss: float
    """Nats per token."""
    tokens: int
    """Targets counted, document boundaries included."""
    bytes: int
    """UTF-8 bytes that the targets stand for."""

    @property
    def perplexity(self) -> float:
        """exp(loss): depends on the tokenizer."""
        return perplexity(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text: comparable across tokenizers."""
        return self.loss * self.tokens / (math.log(2) * max(1, self.bytes))


def perplexity(loss: float) -> float:
    """Return exp(loss); infinity, not an overflow error, for a diverged model."""
    return math.exp(loss) if loss < 700 else math.inf


def mean_loss(
    loss_sum: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    token_bytes: np.ndarray,
    world: World,
) -> LossResult:
    """Return the mean loss per token over the batches of all ranks.

    Args:
        loss_sum: maps a batch to its loss sum, a scalar.
        batches: this rank's share; ranks may have different numbers of them.
        token_bytes: (vocab_size,) bytes that each id stands for.
        world: the ranks to sum over.
    """
    nats = torch.zeros((), dtype=widest(world.device), device=world.device)
    tokens = n_bytes = 0
    for batch in batches:
        targets = batch.targets[batch.targets != IGNORE].numpy()
        tokens += targets.size
        n_bytes += int(token_bytes[targets].sum())
        nats += loss_sum(batch.to(world.device))
    total, all_tokens, all_bytes = world.sum(float(nats), tokens, n_bytes)
    return LossResult(total / max(1, all_tokens), int(all_tokens), int(all_bytes))


def late_targets(batch: Batch, late_from: int) -> Batch:
    """Keep only the targets that at least ``late_from`` tokens of their document precede."""
    if not late_from:
        return batch
    late = batch.layout.positions + 1 >= late_from
    return batch._replace(targets=torch.where(late, batch.targets, IGNORE))


def pad_rows(batch: Batch, rows: int) -> Batch:
    """Pad a batch to ``rows`` sequences with rows that have no targets.

    All forward passes then have one shape: a compiled model would compile again for another.
    """
    missing = rows - batch.tokens.shape[0]
    if missing <= 0:
        return batch
    shape = (missing, batch.tokens.shape[1])
    targets = torch.full(shape, IGNORE, dtype=batch.targets.dtype)
    layout = batch.layout
    if layout.documents is None:
        more = Layout.stream(rows, shape[1], first=int(layout.positions[0, 0]))
    else:
        more = Layout.of(torch.cat([layout.positions, torch.arange(shape[1]).expand(shape)]))
    return Batch(
        torch.cat([batch.tokens, torch.zeros(shape, dtype=batch.tokens.dtype)]),
        torch.cat([batch.targets, targets]),
        more.turned(layout.rotation),
    )
