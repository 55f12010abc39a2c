"""Loss by position: do tokens with much text before them have a lower loss than others?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from gam_scale.data.packing import IGNORE, Batch
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import METHOD, Interval, bootstrap

Span = tuple[int, int]
"""Smallest and largest number of context tokens, both included."""


@dataclass(frozen=True)
class PositionBin:
    """The loss of tokens that have ``first`` to ``last`` tokens of context."""

    first: int
    last: int
    loss: Interval | None
    """Nats per token; None if no token has that much context."""
    tokens: int
    sequences: int


@dataclass(frozen=True)
class ByPosition:
    """Loss by number of context tokens."""

    bins: list[PositionBin]
    sequences: int
    method: str = METHOD


def octaves(longest: int, per_octave: int = 1) -> list[Span]:
    """Return the bins 1, 2-3, 4-7, ... up to ``longest``; ``per_octave`` 2 halves these octaves.

    Halves that round to the same number are one bin. If ``longest`` cuts off more than half of the
    last bin, the bin joins the one before, because few tokens would fill it.
    """
    edges = {round(2 ** (i / per_octave)) for i in range(per_octave * (longest.bit_length() + 1))}
    starts = sorted(edge for edge in edges if edge <= longest)
    full = min(edge for edge in edges | {2 * longest + 2} if edge > longest) - starts[-1]
    if len(starts) > 1 and 2 * (longest + 1 - starts[-1]) < full:
        starts.pop()
    return [(a, b - 1) for a, b in zip(starts, [*starts[1:], longest + 1], strict=True)]


def loss_by_position(
    losses: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    bins: list[Span],
    seed: int = 0,
) -> ByPosition:
    """Return the mean loss of the tokens in each bin.

    The context of a target is the number of tokens from the start of its document up to the token
    that it is predicted from. If the document began before the sequence, the context is counted
    from the start of the sequence. The intervals resample whole rows of the batches.

    Args:
        losses: maps a batch to the nats of its targets (B, T).
        batches: sequences to read.
        bins: spans of context.
        seed: seed of the resampling.

    Raises:
        UserError: there are no batches.
    """
    sums, counts = [], []
    for batch in batches:
        here = _totals(losses(batch), batch, bins)
        sums.append(here[0])
        counts.append(here[1])
    if not sums:
        raise UserError("the text to evaluate holds no sequence; expected at least two tokens")
    total, count = np.concatenate(sums), np.concatenate(counts)
    intervals = bootstrap(total, count, seed)
    position_bins = [
        PositionBin(*span, interval, int(count[:, i].sum()), int((count[:, i] > 0).sum()))
        for i, (span, interval) in enumerate(zip(bins, intervals, strict=True))
    ]
    return ByPosition(position_bins, len(total))


def _totals(losses: Tensor, batch: Batch, spans: list[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed nats and the number of targets by row and span, both (B, spans) float64."""
    nats = losses.double().numpy()
    there = (batch.targets != IGNORE).numpy()
    context = batch.layout.positions.numpy() + 1
    masks = [there & (context >= first) & (context <= last) for first, last in spans]
    totals = [(nats * mask).sum(1) for mask in masks]
    return np.stack(totals, axis=1), np.stack([m.sum(1) for m in masks], axis=1).astype(np.float64)
