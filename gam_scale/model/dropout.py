"""Dropout whose masks cost little on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.kernels.lanes import draw_lanes
from gam_scale.kernels.operator import operator


class Dropout(nn.Module):
    """``nn.Dropout`` in which, on a CPU, one draw of the generator decides four elements.

    There the probability is rounded to a multiple of 2**-16. Measured at 2048 x 512 elements on
    two cores: 1.6 ms for a mask, where torch draws one number per element in 12 ms (15 ms when
    compiled), which was 2% of a training step at the paper's size.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Zero each element with probability p and scale the others to keep the mean."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped = round(self.p * (1 << 16))  # of the 2**16 values of a lane
        keep = _keep_mask(x, dropped)
        return torch.where(keep, x * ((1 << 16) / ((1 << 16) - dropped)), 0.0)


@operator("gam_scale::keep_mask", keep="always")
def _keep_mask(like: Tensor, dropped: int) -> Tensor:
    """Draw a mask in the shape of ``like``, True with probability ``1 - dropped / 2**16``.

    It is one opaque operator, so that a compiled block stays one graph. Its tag keeps the draw from
    being recomputed: the backward pass needs the mask of the forward pass.
    """
    return draw_lanes(like.shape) >= dropped - (1 << 15)


@_keep_mask.register_fake
def _(like: Tensor, dropped: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.bool, device=like.device)
