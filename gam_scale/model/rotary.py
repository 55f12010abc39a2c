"""Rotary positions (arXiv 2104.09864): queries and keys turned by angles that grow with them."""

import torch
from torch import Tensor, nn

from gam_scale.model.context import Context


class Rotary(nn.Module):
    """Turns the pair (j, j + K/2) of a head's K channels by ``position * base ** (-2 j / K)``.

    The angles are computed anew in each call: no table, so no longest position.
    """

    def __init__(self, base: float) -> None:
        super().__init__()
        self.base = base

    def forward(
        self, positions: Tensor | None, context: Context | None, *vectors: Tensor
    ) -> tuple[Tensor, ...]:
        """Each of ``vectors`` (B, T, H, K), turned; positions (B, T), None for 0, 1, 2, ..."""
        length, width = vectors[0].shape[1], vectors[0].shape[-1]
        device = vectors[0].device
        if positions is None:
            first = context.rank * length if context is not None else 0
            positions = torch.arange(first, first + length, device=device)[None]
        # Positions of 100,000 and more, times a frequency: float32 would be off by 1% of a turn.
        exponent = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
        angles = positions.double().unsqueeze(-1) * self.base**-exponent  # (B, T, K/2)
        cos, sin = (f(angles).unsqueeze(2) for f in (torch.cos, torch.sin))
        return tuple(_turn(x, cos.to(x.dtype), sin.to(x.dtype)) for x in vectors)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
