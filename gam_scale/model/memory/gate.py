"""How fast a memory forgets: decays that depend on the token, around horizons set at the start."""

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
"""Step sizes with which Mamba's and gated delta nets' decays begin."""
MOST_RATE = 16.0
"""That those steps are multiplied by, at most."""


class Gate(nn.Linear):
    """Says of each token how much a memory keeps or takes: float32 whatever the parameters are.

    Args:
        in_features: width of the input.
        out_features: gates.
        bias: whether there is one; it never decays.
        decays: whether the matrix does, as any other does.
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
            weight = exact(self.weight)  # whatever an engine has made of it
            bias = None if self.bias is None else exact(self.bias)
            return linear(h.to(weight.dtype), weight, bias)


def step_biases(value: Tensor, draw: Draw) -> None:
    """Fill it such that softplus of it is log-uniform in :data:`STEPS` (arXiv 2312.00752)."""
    low, high = map(math.log, STEPS)
    nn.init.uniform_(value, low, high, generator=draw.generator)
    dt = value.exp()
    value.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus, inverted


def _rates(module: "DecayGate", value: Tensor, draw: Draw) -> None:
    """Horizons spread evenly in the logarithm, in each group of gates; or published rates."""
    if module.least_rate is None:
        value.copy_(-torch.linspace(*module.log_horizons, value.shape[1]))
    else:
        value.uniform_(module.least_rate, MOST_RATE, generator=draw.generator)
        value.clamp_(min=1e-6).log_()


def _published_biases(module: Gate, value: Tensor, draw: Draw) -> None:
    step_biases(value, draw)
    value.sub_(UNIT)


class DecayGate(nn.Module):
    """Log decays, ``-rate softplus(Linear(h) + c)``, where softplus(c) = 1 (as Mamba-2's).

    At initialisation gate i forgets over a horizon of about 1 / rate_i tokens. The horizons are
    spread evenly in the logarithm over a range; a single gate gets its middle. A plain sigmoid
    would give every gate a horizon of the same few tokens, and no gradient would teach it a longer
    one: what it has forgotten does not change the loss. Weight decay would shorten every horizon to
    one token, so rates do not decay.

    Args:
        d_model: width of the input.
        n_gates: gates per group, over which horizons are spread.
        horizons: the shortest and the longest, in tokens.
        n_groups: groups of gates with the same horizons.
        decays: whether the matrix in front of them decays.
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
        """Begin as gated delta nets do (arXiv 2412.06464), whatever the context's length.

        Rates are uniform up to 16, and multiply steps that are log-uniform in :data:`STEPS`:
        horizons of 0.6 to some thousand tokens, of which most are some tens.

        Args:
            least_rate: 0; or 1, as Mamba-2 has it.
        """
        self.least_rate = least_rate
        bias = Policy(_published_biases, "vector", "never", "fp32")
        self.strength.policy = self.strength.policy | {"bias": bias}  # of this instance

    @property
    def longest_horizon(self) -> float:
        """At initialisation, in tokens; 0: as published, whatever settings say."""
        return math.exp(self.log_horizons[1]) if self.least_rate is None else 0.0

    def forward(self, h: Tensor, top_k: int | None = None) -> Tensor:
        """(B, T, d) -> (B, T, groups, gates) log decays, float32 whatever the parameters are.

        ``top_k`` keeps a group's strongest gates per token and holds the others at exactly 0.
        """
        # A rate of 1e-5 a token, summed over a long context: nothing for bfloat16.
        with torch.autocast(h.device.type, enabled=False):
            log_rate = exact(self.log_rate)
            strength = self.strength(h) + UNIT
            strength = F.softplus(strength).unflatten(-1, self.log_rate.shape)
            if top_k is not None and top_k < strength.shape[-1]:
                weakest = strength.topk(top_k, dim=-1).values[..., -1:]
                strength = strength * (strength >= weakest)
            return -log_rate.exp() * strength


def exact(x: Tensor) -> Tensor:
    """``x`` in float32; in float64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
