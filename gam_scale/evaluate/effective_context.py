"""Effective context: the loss of the same tokens if the memory was cleared k tokens before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.packing import Batch, plain_batch
from gam_scale.evaluate.interval import METHOD, Interval, mean_interval
from gam_scale.model.loss import IGNORE

WINDOWS, TARGETS, TOLERANCE = 64, 16, 0.01
"""Defaults: number of windows, targets in each, and the rise in nats that counts as none."""


@dataclass(frozen=True)
class Cleared:
    """The loss of tokens that see only the ``context`` tokens before them."""

    context: int
    loss: Interval
    rise: Interval
    """Nats per token above the same tokens' loss with full context."""


@dataclass(frozen=True)
class EffectiveContext:
    """How much context the model's predictions use."""

    full: Interval
    """Loss with full context, nats per token."""
    cleared: list[Cleared]
    tolerance: float
    least_context: int
    """The fewest tokens of context that any target has when the context is full."""
    sequences: int
    targets: int
    method: str = METHOD

    @property
    def context(self) -> int | None:
        """The smallest measured k from which on the rise in loss stays within the tolerance.

        None if the rise is beyond the tolerance even at the largest measured k.
        """
        return self._smallest(lambda c: c.rise.mean)

    @property
    def sure_context(self) -> int | None:
        """Like :attr:`context`, for the upper ends of the 95% intervals: shown, not only likely."""
        return self._smallest(lambda c: c.rise.high)

    def _smallest(self, rise: Callable[[Cleared], float]) -> int | None:
        context = None
        for point in sorted(self.cleared, key=lambda c: -c.context):
            if rise(point) > self.tolerance:
                break
            context = point.context
        return context


def contexts(seq_len: int) -> list[int]:
    """Return the ks to measure: 1, 2, 4, ... up to half of the sequence."""
    return [1 << i for i in range(max(1, seq_len // 2).bit_length())]


def effective_context(
    losses: Callable[[Batch], Tensor],
    windows: Sequence[np.ndarray],
    ks: Sequence[int],
    targets: int = TARGETS,
    tolerance: float = TOLERANCE,
    tokens_per_batch: int = 8192,
) -> EffectiveContext:
    """Measure the loss of the same targets with full context and with only the last k tokens.

    The shortened context is read as a text of its own: its memory starts empty and its positions
    start at 0, as in every sequence that training cuts out of a document.

    Args:
        losses: maps a batch to the nats of its targets (B, T).
        windows: arrays of T + 1 ids, each inside one document; all of one length.
        ks: tokens of context to keep.
        targets: how many tokens of each window to predict, spread evenly over its second half.
        tolerance: nats per token within which a shortened context counts as enough.
        tokens_per_batch: limits the size of a forward pass.
    """
    length = len(windows[0]) - 1
    assert max(ks) <= length // 2 + 1
    where = np.unique(np.linspace(length // 2, length - 1, targets).round().astype(np.int64))
    ids = torch.from_numpy(np.stack(windows).astype(np.int64))  # (n, T + 1)
    rows = max(1, tokens_per_batch // length)
    full = torch.cat([losses(_batch(part, where))[:, where] for part in ids.split(rows)]).double()
    points = []
    for k in ks:
        # Row (window, target t) is ids[t - k + 1 : t + 2]: k inputs and the token after them.
        short = ids[:, torch.from_numpy(where[:, None] + np.arange(-k + 1, 2))].flatten(0, 1)
        parts = short.split(max(1, tokens_per_batch // k))
        nats = torch.cat([losses(_batch(p, [k - 1]))[:, k - 1] for p in parts])
        nats = nats.double().view(full.shape)
        rise = mean_interval((nats - full).mean(1).numpy())
        points.append(Cleared(k, mean_interval(nats.mean(1).numpy()), rise))
    everything = mean_interval(full.mean(1).numpy())
    least = int(where[0]) + 1
    return EffectiveContext(everything, points, tolerance, least, len(ids), len(where))


def _batch(ids: Tensor, where: Sequence[int] | np.ndarray) -> Batch:
    """Turn ids (B, k + 1) into texts of k inputs, one per row, with targets at ``where`` only.

    Other positions have no target, so that no time is spent on their logits.
    """
    targets = torch.full_like(ids[:, 1:], IGNORE)
    targets[:, where] = ids[:, 1:][:, where]
    return plain_batch(ids[:, :-1], targets)


def windows_of(documents: Sequence[np.ndarray], length: int, limit: int) -> list[np.ndarray]:
    """Return up to ``limit`` windows of ``length + 1`` ids, evenly spread, each in one document."""
    windows = [
        document[start : start + length + 1]
        for document in documents
        for start in range(0, len(document) - length, length)
    ]
    if len(windows) <= limit:
        return windows
    return [windows[i] for i in np.linspace(0, len(windows) - 1, limit).round().astype(int)]
