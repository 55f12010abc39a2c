"""LayerNorm, the paper's norm, over the channels of each token."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.parts import NORMS, NormConfig
from gam_scale.model.policy import Policy, ones, zeros
from gam_scale.model.shape import Shape


@NORMS.register
@dataclass(frozen=True)
class LayerNormConfig(NormConfig):
    """LayerNorm, with a bias where the model has biases."""

    kind: Literal["layernorm"] = "layernorm"

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`NormConfig.build`."""
        return LayerNorm(shape.d_model, bias=shape.biases)


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` that also takes fp32 input with weights that an engine gathered in bf16.

    CUDA's autocast casts such a mix by itself; torch's CPU kernel refuses it.
    """

    policy: ClassVar[dict[str, Policy]] = {
        "weight": Policy(ones, "vector", "all"),
        "bias": Policy(zeros, "vector", "all"),
    }

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(wide), bias, self.eps)
