"""A feed-forward network with squared ReLU (arXiv 2109.08668)."""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.feedforwards.mlp import MLP
from gam_scale.model.ffn_width import WideConfig
from gam_scale.model.parts import FEED_FORWARDS
from gam_scale.model.shape import Shape


@FEED_FORWARDS.register
@dataclass(frozen=True)
class ReLU2Config(WideConfig):
    """Linear d -> mult d, max(x, 0)^2, Linear back."""

    kind: Literal["relu2"] = "relu2"

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`FeedForwardConfig.build`."""
        return ReLU2(self.channels(shape), shape)


class ReLU2(MLP):
    """Linear d -> width, squared ReLU, Linear back, dropout."""

    def activation(self, x: Tensor) -> Tensor:
        """See :meth:`MLP.activation`."""
        return F.relu(x).square()
