"""How fast a memory forgets: decays that depend on the token, around horizons set at the start."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.config import MemoryConfig
from gam_scale.model.linear import linear

_UNIT = math.log(math.e - 1)  # softplus of it is 1


class DecayGate(nn.Module):
    """Log decays, ``-rate softplus(Linear(h) + c)``, where softplus(c) = 1 (as Mamba-2's).

    At initialisation gate i forgets over about 1 / rate_i tokens. These horizons are spread evenly
    in the logarithm from ``min_horizon`` to ``max_horizon``: a plain sigmoid would give every gate
    the same few tokens, and learning to keep something for longer needs something kept.

    Args:
        d_model: width of the input.
        n_gates: gates per group, over which horizons are spread.
        n_groups: groups of gates with the same horizons.
        memory: the horizons.
    """

    def __init__(self, d_model: int, n_gates: int, memory: MemoryConfig, n_groups: int = 1) -> None:
        super().__init__()
        self.horizons = memory.min_horizon, memory.max_horizon
        self.strength = nn.Linear(d_model, n_groups * n_gates)
        self.log_rate = nn.Parameter(torch.empty(n_groups, n_gates))

    def init_parameter(self, name: str, generator: torch.Generator) -> bool:
        """The rates; ``strength`` is drawn like every linear layer."""
        low, high = map(math.log, self.horizons)
        self.log_rate.data.copy_(-torch.linspace(low, high, self.log_rate.shape[1]))
        return True

    def forward(self, h: Tensor, top_k: int | None = None) -> Tensor:
        """(B, T, d) -> (B, T, groups, gates) log decays, float32 whatever the parameters are.

        ``top_k`` keeps a group's strongest gates per token and holds the others at exactly 0.
        """
        # A rate of 1e-5 a token, summed over a long context: nothing for bfloat16.
        with torch.autocast(h.device.type, enabled=False):
            log_rate = exact(self.log_rate)
            strength = exact_linear(self.strength, h) + _UNIT
            strength = F.softplus(strength).unflatten(-1, self.log_rate.shape)
            if top_k is not None and top_k < strength.shape[-1]:
                weakest = strength.topk(top_k, dim=-1).values[..., -1:]
                strength = strength * (strength >= weakest)
            return -log_rate.exp() * strength


def exact(x: Tensor) -> Tensor:
    """``x`` in float32; in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact_linear(layer: nn.Linear, h: Tensor) -> Tensor:
    """``layer(h)`` in float32, where an engine may have gathered its parameters in bfloat16."""
    weight = exact(layer.weight)
    return linear(h.to(weight.dtype), weight, exact(layer.bias))
