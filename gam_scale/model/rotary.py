"""Rotary positions (arXiv 2104.09864): queries and keys are turned by position-dependent angles."""

from typing import NamedTuple

import torch
from torch import Tensor

from gam_scale.model.widest import widest


class Rotation(NamedTuple):
    """The parameters of rotary tables."""

    base: float
    widths: tuple[int, ...]  # of heads, one table each
    dtype: torch.dtype = torch.float32


def tables(positions: Tensor, rotation: Rotation) -> dict[int, tuple[Tensor, Tensor]]:
    """Compute cos and sin (B, T, K / 2) of ``position * base ** (-2 j / K)``, by head width K.

    j is the number of a pair of channels. No position is too large.
    """
    by_width, device = {}, positions.device
    # For positions of 100,000 and more, float32 angles would be off by 1% of a turn.
    positions = positions if widest(device) == torch.float64 else positions.cpu()
    for width in rotation.widths:
        exponent = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
        angles = positions.double().unsqueeze(-1) * rotation.base**-exponent
        pair = angles.cos().to(rotation.dtype), angles.sin().to(rotation.dtype)
        by_width[width] = pair[0].to(device), pair[1].to(device)
    return by_width


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (j, j + K / 2) of (B, T, H, K) by the angles of (1 or B, T, K / 2)."""
    cos, sin = (y.unsqueeze(2).to(x.dtype) for y in (cos, sin))
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
