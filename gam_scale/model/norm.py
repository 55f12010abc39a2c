"""Norms of vectors, with a floor that keeps the gradient at a zero vector finite.

At the first tokens of a document a state holds little, and what is read from it may be so tiny that
float32 does not determine its sign. A norm without a floor would bring such rounding errors to full
size. The floors are those of published layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LENGTH_FLOOR = 1e-6
"""Added to a vector's squared length."""

SIZE_FLOOR = 1e-5
"""Added to a vector's mean square."""


def unit_length(x: Tensor) -> Tensor:
    """Scale each vector of (..., K) to length 1, very short ones to less."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + LENGTH_FLOOR)


def unit_size(x: Tensor) -> Tensor:
    """Scale each vector of (..., K) to a mean square of 1, very short ones to less."""
    return F.rms_norm(x, x.shape[-1:], eps=SIZE_FLOOR)
