"""Norms. Those of vectors have a floor, without which a vector of zeros has an endless gradient.

At the first tokens of a document a state holds little, and what is read from it may be tiny: a norm
without a floor takes its sign, which float32 does not know. The floors are those of published
layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH_FLOOR = 1e-6
"""Of a square length."""

SIZE_FLOOR = 1e-5
"""Of a mean square."""


class LayerNorm(nn.LayerNorm):
    """As ``nn.LayerNorm``, also of fp32 numbers with weights that an engine gathered in bf16.

    CUDA's autocast casts these; a CPU's kernel refuses them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        weight, bias = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def unit_length(x: Tensor) -> Tensor:
    """(..., K), each vector brought to length 1, very short ones to less."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_FLOOR)


def unit_size(x: Tensor) -> Tensor:
    """(..., K), each vector brought to a mean square of 1, very short ones to less."""
    return F.rms_norm(x, x.shape[-1:], eps=SIZE_FLOOR)
