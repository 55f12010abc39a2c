"""SwiGLU (arXiv 2002.05202): one half of the channels gates the other."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.dropout import Dropout
from gam_scale.model.ffn_width import WideConfig, mult_option
from gam_scale.model.linear import Linear
from gam_scale.model.parts import FEED_FORWARDS
from gam_scale.model.policy import TO_RESIDUAL, stacked
from gam_scale.model.shape import Shape

_MULTIPLE = 8  # the width is a multiple of it, a size at which kernels are fast


@FEED_FORWARDS.register
@dataclass(frozen=True)
class SwiGLUConfig(WideConfig):
    """SiLU(x A) * (x B), then a matrix back: three matrices instead of two."""

    kind: Literal["swiglu"] = "swiglu"
    mult: int = mult_option(
        "width as a multiple of d_model, counted in parameters: its three matrices have those of "
        "two of this multiple, so it is 2/3 as wide, rounded up to a multiple of 8"
    )

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`FeedForwardConfig.build`."""
        return SwiGLU(self.channels(shape), shape)

    def by_mult(self, shape: Shape) -> int:
        """See :meth:`WideConfig.by_mult`."""
        return -(-2 * self.mult * shape.d_model // (3 * _MULTIPLE)) * _MULTIPLE


class SwiGLU(nn.Module):
    """``(SiLU(g) * u) W`` with ``(g, u) = Linear(x)``, dropout."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        # The rows of the gates, then those of the values that they gate.
        self.up = Linear(d, 2 * width, bias=shape.biases, weight=stacked(width, width))
        self.down = Linear(width, d, bias=shape.biases, weight=TO_RESIDUAL)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        gate, up = self.up(x).chunk(2, dim=-1)
        return self.dropout(self.down(F.silu(gate) * up))

    def flops_per_token(self) -> float:
        """Return the FLOPs of the matmuls, a multiply-add counted as two."""
        return 2.0 * (self.up.weight.numel() + self.down.weight.numel())
