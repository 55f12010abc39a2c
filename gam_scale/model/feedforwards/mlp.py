"""The paper's feed-forward network: two matrices with exact GELU between them."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gam_scale.model.dropout import Dropout
from gam_scale.model.ffn_width import WideConfig
from gam_scale.model.gelu import gelu
from gam_scale.model.linear import Linear
from gam_scale.model.parts import FEED_FORWARDS
from gam_scale.model.policy import TO_RESIDUAL
from gam_scale.model.shape import Shape


@FEED_FORWARDS.register
@dataclass(frozen=True)
class MLPConfig(WideConfig):
    """Linear d -> mult d, exact GELU, Linear back."""

    kind: Literal["mlp"] = "mlp"

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`FeedForwardConfig.build`."""
        return MLP(self.channels(shape), shape)


class MLP(nn.Module):
    """Linear d -> width, exact GELU, Linear back, dropout."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.up = Linear(d, width, bias=shape.biases)
        self.down = Linear(width, d, bias=shape.biases, weight=TO_RESIDUAL)
        self.dropout = Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.dropout(self.down(self.activation(self.up(x))))

    def activation(self, x: Tensor) -> Tensor:
        """Apply the activation between the matrices, elementwise."""
        return gelu(x)

    def flops_per_token(self) -> float:
        """Return the FLOPs of both matmuls, a multiply-add counted as two."""
        return 2.0 * (self.up.weight.numel() + self.down.weight.numel())
