"""What more context is worth: the loss of the same tokens after little and after much text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.packing import Batch, plain_batch
from gam_scale.errors import UserError
from gam_scale.evaluate.by_position import Span
from gam_scale.evaluate.interval import METHOD, Interval, mean_interval
from gam_scale.model.loss import IGNORE


@dataclass(frozen=True)
class Difference:
    """The loss of the same tokens with context in the near span and in the far span."""

    near: Span
    far: Span
    near_loss: Interval
    far_loss: Interval
    """In nats per token, as ``near_loss``."""
    change: Interval
    """Far minus near, paired by token: below 0 where the longer context helps."""
    sequences: int
    tokens: int
    method: str = METHOD


def parse_spans(text: str) -> tuple[Span, Span]:
    """Parse two spans of context, as ``128-256:2048-4096``.

    Raises:
        UserError: the text has another form, or the spans do not go together.
    """
    try:
        near, far = (tuple(map(int, part.split("-"))) for part in text.split(":"))
        (a, b), (c, d) = near, far
        if not 1 <= a <= b < c <= d or d - c < b - a:
            raise ValueError
    except ValueError:
        raise UserError(
            f"--compare {text!r} is not a pair of spans; expected two ranges of tokens of context, "
            "the nearer first and no wider than the other, such as 128-256:2048-4096"
        ) from None
    return (a, b), (c, d)


def compare_spans(
    losses: Callable[[Batch], Tensor],
    windows: Sequence[np.ndarray],
    near: Span,
    far: Span,
    seed: int = 0,
    tokens_per_batch: int = 8192,
) -> Difference:
    """Compare the loss of the same tokens with context in ``far`` and in ``near``.

    Each window is read once from its start, and its late tokens again from shortly before them.
    Every token is its own control, because texts differ more than contexts do: how hard its words
    are changes the loss of a few thousand tokens by more than a memory does.

    Args:
        losses: maps a batch to the nats of its targets (B, T).
        windows: arrays of at least ``far[1] + 1`` ids, each inside one document.
        near: span of context in the second reading, which starts with an empty memory.
        far: span of context in the first reading; its tokens are taken in groups as wide as
            ``near``, and tokens left over at its end are not used.
        seed: seed of the resampling, which draws windows.
        tokens_per_batch: limits the size of a forward pass.
    """
    (a, b), (c, d) = near, far
    width = b - a + 1
    starts = np.arange(c, d - width + 2, width)  # context of each group's first token in `far`
    last = int(starts[-1]) + width - 1
    ids = torch.from_numpy(np.stack([w[: last + 1] for w in windows]).astype(np.int64))
    # Row (window, group) is ids[start - a : start + width], of which the last `width` are targets.
    # The first of them has `a` tokens of context here and `start` tokens in the first reading.
    rows = ids[:, torch.from_numpy((starts - a)[:, None] + np.arange(b + 1))].flatten(0, 1)
    of_far = _last_losses(losses, ids, last - c + 1, tokens_per_batch)
    of_near = _last_losses(losses, rows, width, tokens_per_batch).view(of_far.shape)
    loss_near, loss_far, difference = (
        mean_interval(nats.mean(1).numpy(), seed) for nats in (of_near, of_far, of_far - of_near)
    )
    return Difference(near, far, loss_near, loss_far, difference, len(ids), of_far.numel())


def _last_losses(
    losses: Callable[[Batch], Tensor], ids: Tensor, wanted: int, tokens_per_batch: int
) -> Tensor:
    """Return nats (n, wanted) float64 of the last ``wanted`` tokens of rows of ids (n, T + 1)."""
    parts = []
    for part in ids.split(max(1, tokens_per_batch // ids.shape[1])):
        targets = torch.full_like(part[:, 1:], IGNORE)
        targets[:, -wanted:] = part[:, -wanted:]
        parts.append(losses(plain_batch(part[:, :-1], targets))[:, -wanted:])
    return torch.cat(parts).double()
