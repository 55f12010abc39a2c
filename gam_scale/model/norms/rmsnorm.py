"""RMSNorm (arXiv 1910.07467): each token's channels brought to a mean square of 1."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.parts import NORMS, NormConfig
from gam_scale.model.policy import Policy, ones
from gam_scale.model.shape import Shape
from gam_scale.strict import option


@NORMS.register
@dataclass(frozen=True)
class RMSNormConfig(NormConfig):
    """RMSNorm, which neither subtracts a mean nor adds a bias."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    eps: float = option(1e-5, "number added to the mean square, before the root", above=0)

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`NormConfig.build`."""
        return RMSNorm(shape.d_model, self.eps)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``."""

    policy: ClassVar[dict[str, Policy]] = {"weight": Policy(ones, "vector", "all")}

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d), also with weights that an engine gathered in bf16."""
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(wide), self.weight.shape, self.weight.to(wide), self.eps)
