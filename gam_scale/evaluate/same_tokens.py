"""What more context is worth: the same tokens' loss after little and after much of their text."""

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
    """The loss of the same tokens with context in one span and in another."""

    near: Span
    far: Span
    near_loss: Interval
    far_loss: Interval
    """Nats per token."""
    change: Interval
    """Far minus near, paired by token: below 0 where the longer context helps."""
    sequences: int
    tokens: int
    method: str = METHOD


def parse_spans(text: str) -> tuple[Span, Span]:
    """``128-256:2048-4096`` as two spans of context.

    Raises:
        UserError: the text is of another form.
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
    """Read each window once from its start, and its late tokens again from shortly before them.

    Texts differ more than contexts do: how hard its words are moves the loss of a few thousand
    tokens by more than what a memory adds. Here every token is its own control.

    Args:
        losses: maps a batch to the nats of its targets (B, T).
        windows: arrays of at least ``far[1] + 1`` ids, each inside one document.
        near: span of context of the second reading, whose text starts anew with an empty memory.
        far: span of context in the first; its tokens are taken in groups of the near span's width,
            and what is left over at its end is not.
        seed: of the resampling, which draws windows.
        tokens_per_batch: bounds the size of a forward pass.
    """
    (a, b), (c, d) = near, far
    width = b - a + 1
    starts = np.arange(c, d - width + 2, width)  # context of each group's first token in `far`
    last = int(starts[-1]) + width - 1
    ids = torch.from_numpy(np.stack([w[: last + 1] for w in windows]).astype(np.int64))
    # Row (window, group) is ids[start - a : start + width]: its first target in `near` has a tokens
    # of context, and is the one with `start` tokens in `far`.
    rows = ids[:, torch.from_numpy((starts - a)[:, None] + np.arange(b + 1))].flatten(0, 1)
    of_far = _tail(losses, ids, last - c + 1, tokens_per_batch)
    of_near = _tail(losses, rows, width, tokens_per_batch).view(of_far.shape)
    loss_near, loss_far, difference = (
        mean_interval(nats.mean(1).numpy(), seed) for nats in (of_near, of_far, of_far - of_near)
    )
    return Difference(near, far, loss_near, loss_far, difference, len(ids), of_far.numel())


def _tail(
    losses: Callable[[Batch], Tensor], ids: Tensor, wanted: int, tokens_per_batch: int
) -> Tensor:
    """Nats of the last ``wanted`` tokens of each row of ids (n, T + 1), as (n, wanted) float64."""
    parts = []
    for part in ids.split(max(1, tokens_per_batch // ids.shape[1])):
        targets = torch.full_like(part[:, 1:], IGNORE)
        targets[:, -wanted:] = part[:, -wanted:]
        parts.append(losses(plain_batch(part[:, :-1], targets))[:, -wanted:])
    return torch.cat(parts).double()
