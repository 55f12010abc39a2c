"""The position-wise feed-forward network of every residual block."""

from torch import Tensor, nn

from gam_scale.model.dropout import Dropout
from gam_scale.model.gelu import gelu
from gam_scale.model.linear import Linear


class FeedForward(nn.Module):
    """Linear d -> mult*d, exact GELU, Linear back, dropout."""

    def __init__(self, d_model: int, mult: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(d_model, mult * d_model)
        self.down = Linear(mult * d_model, d_model)
        self.down.is_residual_output = True
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.dropout(self.down(gelu(self.up(x))))

    def flops_per_token(self) -> float:
        """Both matmuls, a multiply-add counted as two."""
        return 2.0 * (self.up.weight.numel() + self.down.weight.numel())
