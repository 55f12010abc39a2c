"""What one decay per head and token leaves between the tokens of a chunk."""

import torch
from torch import Tensor

from gam_scale.model.memory.recurrence import Chunks


def pair_decays(log_decay: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """One decay per head and token, (B, H, N, C), between the tokens of a chunk.

    Returns:
        what is left at token t of what s wrote (B, H, N, C, C), 0 for s > t and across documents;
        at t of what the chunk began with (B, H, N, C); at its end of what s wrote (B, H, N, C).
    """
    total = chunks.totals(log_decay.unsqueeze(-1)).squeeze(-1)
    between = total.unsqueeze(-1) - total.unsqueeze(-2)
    # Masked before exp: what lies above the diagonal would overflow there.
    left = between.masked_fill(~chunks.same, -torch.inf).exp()
    since_start = total.masked_fill(~chunks.carried, -torch.inf).exp()
    return left, since_start, left[..., -1, :]
