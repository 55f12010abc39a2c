"""Norms of vectors have a floor, without which a vector of zeros has an endless gradient.

At the first tokens of a document a state holds little, and what is read from it may be tiny: a norm
without a floor takes its sign, which float32 does not know. The floors are those of published
layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_FLOOR = 1e-6
"""Of a square length."""

SIZE_FLOOR = 1e-5
"""Of a mean square."""


def unit_length(x: Tensor) -> Tensor:
    """(..., K), each vector brought to length 1, very short ones to less."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_FLOOR)


def unit_size(x: Tensor) -> Tensor:
    """(..., K), each vector brought to a mean square of 1, very short ones to less."""
    return F.rms_norm(x, x.shape[-1:], eps=SIZE_FLOOR)
