"""The gate between what a memory's heads read and its output layer."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.linear import Linear
from gam_scale.model.norm import SIZE_FLOOR
from gam_scale.model.norms.rmsnorm import RMSNorm

GateKind = Literal["silu", "sigmoid"]


class OutputGate(nn.Module):
    """``RMSNorm(read; weight) * gate(W h)`` per head, as in gated delta nets (arXiv 2412.06464).

    All heads share the norm's weight, of a head's width; the norm's floor is 1e-5. Weight decay
    applies to W as to other projections.

    Args:
        d_model: width of what the gate is computed from.
        n_heads: heads of the memory.
        width: channels that a head reads.
        kind: the activation that turns W h into gates: SiLU, or a sigmoid.
        rank: rank of W, which is then followed by a bias; 0: full.
    """

    def __init__(
        self, d_model: int, n_heads: int, width: int, kind: GateKind, rank: int = 0
    ) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.norm = RMSNorm(width, SIZE_FLOOR)
        self.down = Linear(d_model, rank, bias=False) if rank else None
        self.linear = Linear(rank or d_model, n_heads * width, bias=rank > 0)

    def forward(self, read: Tensor, h: Tensor) -> Tensor:
        """Gate what heads read, (B, T, H, V), by the tokens (B, T, d_model): -> (B, T, H, V)."""
        return self.norm(read) * self.opened(h)

    def opened(self, h: Tensor) -> Tensor:
        """Return the gates that multiply what heads read, (B, T, H, V)."""
        h = h if self.down is None else self.down(h)
        z = self.linear(h).unflatten(-1, (-1, self.width))
        return F.silu(z) if self.kind == "silu" else torch.sigmoid(z)

    def flops_per_token(self) -> float:
        """Return the FLOPs of the matrices, a multiply-add counted as two."""
        linears = (part for part in (self.down, self.linear) if part is not None)
        return sum(2.0 * part.weight.numel() for part in linears)
