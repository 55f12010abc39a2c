"""The causal depthwise convolution that mixes neighbouring tokens."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.model.context import Context
from gam_scale.model.layout import Layout
from gam_scale.model.policy import Draw, Policy


def _torchs_conv1d(module: "CausalConv", value: Tensor, draw: Draw) -> None:
    """Draw as torch's own Conv1d does: uniform within 1 / sqrt(fan_in), fan_in = kernel_size."""
    bound = 1.0 / math.sqrt(module.kernel_size)
    value.uniform_(-bound, bound, generator=draw.generator)


class CausalConv(nn.Module):
    """Depthwise convolution over time; each output sees the last ``kernel_size`` tokens.

    Written as shifted multiply-adds on (B, T, d), which needs no transposes to a channels-first
    layout and fuses with its neighbours under torch.compile.
    """

    policy: ClassVar[dict[str, Policy]] = {
        "weight": Policy(_torchs_conv1d, "vector", "always"),
        "bias": Policy(_torchs_conv1d, "vector", "all"),
    }

    def __init__(self, d_model: int, kernel_size: int, bias: bool = True) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.empty(d_model, 1, kernel_size))  # nn.Conv1d's layout
        self.bias = nn.Parameter(torch.empty(d_model)) if bias else None

    def forward(self, x: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """Convolve (B, T, d); no tap leaves its document."""
        halo = self.kernel_size - 1
        if context is None or halo == 0:
            window = F.pad(x, (0, 0, halo, 0))  # (B, T + k - 1, d)
        else:
            window = torch.cat([context.shift(x[:, -halo:]), x], dim=1)
        return self._convolve(window, layout)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the inputs before the first token: zeros (B, k - 1, d)."""
        shape = (batch_size, self.kernel_size - 1, self.weight.shape[0])
        return torch.zeros(shape, device=device, dtype=dtype)

    def extend(self, x: Tensor, state: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Convolve the next tokens (B, T, d) after ``state``, the k - 1 inputs before them."""
        window = torch.cat([state, x], dim=1)
        return self._convolve(window, layout), window[:, x.shape[1] :]

    def forward_from(
        self, x: Tensor, state: Tensor, layout: Layout, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        """Convolve (B, T, d) after ``state`` or, with ``context``, after the previous rank.

        Returns:
            The output (B, T, d) and the last k - 1 inputs.
        """
        if context is None:
            return self.extend(x, state, layout)
        return self(x, layout, context), x[:, x.shape[1] - self.kernel_size + 1 :]

    def _convolve(self, window: Tensor, layout: Layout) -> Tensor:
        taps = self.weight[:, 0]  # (d, k); the last tap weighs the current token
        last, length = self.kernel_size - 1, layout.length
        y = taps[:, last] * window[:, last : last + length]
        if self.bias is not None:
            y = self.bias + y
        for back in range(1, self.kernel_size):
            term = taps[:, last - back] * window[:, last - back : last - back + length]
            if layout.documents is not None:
                term = torch.where((layout.positions >= back).unsqueeze(-1), term, 0.0)
            y = y + term
        return y

    def flops_per_token(self) -> float:
        """Return the FLOPs: one multiply-add per tap."""
        return 2.0 * self.weight.numel()


def check_taps(taps: int, key: str, tokens: int, reason: str) -> None:
    """Refuse a convolution that reaches back past the previous rank.

    Args:
        taps: taps of the convolution.
        key: config key of the taps.
        tokens: tokens of a sequence on one rank.
        reason: why sequences are so short, with which the message begins.
    """
    if tokens < taps:
        raise UserError(f"{reason} and {key} {taps}; expected at least that many tokens on a rank")
