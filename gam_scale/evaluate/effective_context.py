"""Effective context: what the same tokens cost when the memory was cleared k tokens before them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.packing import Batch, plain_batch
from gam_scale.evaluate.interval import METHOD, Interval, mean_interval
from gam_scale.model.loss import IGNORE

WINDOWS, TARGETS, TOLERANCE = 64, 16, 0.01
"""Sequences, targets of each, and the rise in nats that counts as none, unless others are asked."""


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
    """Tokens of context that every target has at least when the context is full."""
    sequences: int
    targets: int
    method: str = METHOD

    @property
    def context(self) -> int | None:
        """The smallest k from which on the loss is within the tolerance of full context's.

        None where even the longest k measured is not.
        """
        return self._smallest(lambda c: c.rise.mean)

    @property
    def sure_context(self) -> int | None:
        """:attr:`context` by the upper ends of the intervals: where that is shown, not likely."""
        return self._smallest(lambda c: c.rise.high)

    def _smallest(self, rise: Callable[[Cleared], float]) -> int | None:
        context = None
        for point in sorted(self.cleared, key=lambda c: -c.context):
            if rise(point) > self.tolerance:
                break
            context = point.context
        return context


def contexts(seq_len: int) -> list[int]:
    """1, 2, 4, ... up to half the sequence: the ks to measure."""
    return [1 << i for i in range(max(1, seq_len // 2).bit_length())]


def effective_context(
    losses: Callable[[Batch], Tensor],
    windows: Sequence[np.ndarray],
    ks: Sequence[int],
    targets: int = TARGETS,
    tolerance: float = TOLERANCE,
    tokens_per_batch: int = 8192,
) -> EffectiveContext:
    """Loss of the same targets with full context and with only the last k tokens.

    The shortened context is fed as a text of its own, whose memory starts empty and whose
    positions start at 0, as they do at every sequence that training cuts out of a document.

    Args:
        losses: maps a batch to the nats of its targets (B, T).
        windows: arrays of T + 1 ids, each inside one document; all of one length.
        ks: tokens of context to keep.
        targets: how many tokens of each window to predict, spread evenly over its second half.
        tolerance: nats per token within which a shortened context counts as enough.
        tokens_per_batch: bounds the size of a forward pass.
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
    """(B, k + 1) ids as rows of k inputs, each a text of its own, with targets at ``where`` only.

    Without the other targets no time goes into their logits.
    """
    targets = torch.full_like(ids[:, 1:], IGNORE)
    targets[:, where] = ids[:, 1:][:, where]
    return plain_batch(ids[:, :-1], targets)


def windows_of(documents: Sequence[np.ndarray], length: int, limit: int) -> list[np.ndarray]:
    """Up to ``limit`` stretches of ``length + 1`` ids, none across documents, evenly spread."""
    windows = [
        document[start : start + length + 1]
        for document in documents
        for start in range(0, len(document) - length, length)
    ]
    if len(windows) <= limit:
        return windows
    return [windows[i] for i in np.linspace(0, len(windows) - 1, limit).round().astype(int)]
