"""How fast a memory forgets: decays that depend on the token, around initial horizons."""

import math
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.linear import linear
from gam_scale.model.policy import Draw, Policy, linear_bias, linear_weight

UNIT = math.log(math.e - 1)  # softplus of it is 1

STEPS = (1e-3, 1e-1)
"""The range of initial step sizes of the decays of Mamba and gated delta nets."""
MOST_RATE = 16.0
"""The largest of the initial rates that multiply those steps."""


class Gate(nn.Linear):
    """A linear layer, computed in float32, that decides what a memory keeps and takes.

    Args:
        in_features: width of the input.
        out_features: number of gates.
        bias: whether there is a bias, to which weight decay never applies.
        decays: whether weight decay applies to the matrix, as to any other.
    """

    policy: dict[str, Policy] = {
        "weight": Policy(linear_weight, "gate", "never", "fp32"),
        "bias": Policy(linear_bias, "vector", "never", "fp32"),
    }

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, decays: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        if decays:
            weight = replace(self.policy["weight"], decay="always")
            self.policy = self.policy | {"weight": weight}  # of this instance

    def forward(self, h: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        with torch.autocast(h.device.type, enabled=False):
            weight = exact(self.weight)  # whichever dtype an engine gave it
            bias = None if self.bias is None else exact(self.bias)
            return linear(h.to(weight.dtype), weight, bias)


def step_biases(value: Tensor, draw: Draw) -> None:
    """Fill ``value`` so that its softplus is log-uniform in :data:`STEPS` (arXiv 2312.00752)."""
    low, high = map(math.log, STEPS)
    nn.init.uniform_(value, low, high, generator=draw.generator)
    dt = value.exp()
    value.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def _rates(module: "DecayGate", value: Tensor, draw: Draw) -> None:
    """Fill log rates: horizons spread evenly in the logarithm in each group, or as published."""
    if module.least_rate is None:
        value.copy_(-torch.linspace(*module.log_horizons, value.shape[1]))
    else:
        value.uniform_(module.least_rate, MOST_RATE, generator=draw.generator)
        value.clamp_(min=1e-6).log_()


def _published_biases(module: Gate, value: Tensor, draw: Draw) -> None:
    step_biases(value, draw)
    value.sub_(UNIT)


class DecayGate(nn.Module):
    """Log decays, ``-rate softplus(Linear(h) + c)``, where softplus(c) = 1 (as in Mamba-2).

    At initialisation gate i forgets over a horizon of about 1 / rate_i tokens. The horizons are
    spread evenly in the logarithm over a range; a single gate gets the middle. A plain sigmoid
    would give every gate a horizon of the same few tokens, and no gradient would teach it a longer
    one, since what it has forgotten does not change the loss. Weight decay would shorten every
    horizon to one token, so it does not apply to rates.

    Args:
        d_model: width of the input.
        n_gates: gates per group, over which horizons are spread.
        horizons: the shortest and the longest, in tokens.
        n_groups: groups of gates with the same horizons.
        decays: whether weight decay applies to the matrix in front of the gates.
    """

    policy: ClassVar[dict[str, Policy]] = {"log_rate": Policy(_rates, "vector", "never", "fp32")}

    def __init__(
        self,
        d_model: int,
        n_gates: int,
        horizons: tuple[float, float],
        n_groups: int = 1,
        *,
        decays: bool = False,
    ) -> None:
        super().__init__()
        low, high = map(math.log, horizons)
        self.log_horizons = (low, high) if n_gates > 1 else ((low + high) / 2,) * 2
        self.strength = Gate(d_model, n_groups * n_gates, decays=decays)
        self.log_rate = nn.Parameter(torch.empty(n_groups, n_gates))
        self.least_rate: float | None = None

    def begin_as_published(self, least_rate: float) -> None:
        """Initialise as gated delta nets are (arXiv 2412.06464), whatever the context's length.

        Rates are uniform up to 16 and multiply steps that are log-uniform in :data:`STEPS`. The
        horizons range from 0.6 to some thousand tokens; most are some tens.

        Args:
            least_rate: the lowest rate: 0, or 1 as in Mamba-2.
        """
        self.least_rate = least_rate
        bias = Policy(_published_biases, "vector", "never", "fp32")
        self.strength.policy = self.strength.policy | {"bias": bias}  # of this instance

    @property
    def longest_horizon(self) -> float:
        """The longest initial horizon, in tokens; 0 for published rates, which ignore settings."""
        return math.exp(self.log_horizons[1]) if self.least_rate is None else 0.0

    def forward(self, h: Tensor, top_k: int | None = None) -> Tensor:
        """(B, T, d) -> (B, T, groups, gates) log decays, float32 whatever the parameters are.

        ``top_k`` keeps a group's strongest gates per token and sets the others to exactly 0.
        """
        # bfloat16 would lose rates of 1e-5 per token, summed over a long context.
        with torch.autocast(h.device.type, enabled=False):
            log_rate = exact(self.log_rate)
            strength = self.strength(h) + UNIT
            strength = F.softplus(strength).unflatten(-1, self.log_rate.shape)
            if top_k is not None and top_k < strength.shape[-1]:
                weakest = strength.topk(top_k, dim=-1).values[..., -1:]
                strength = strength * (strength >= weakest)
            return -log_rate.exp() * strength


def exact(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or in float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
