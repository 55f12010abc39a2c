"""What holds of a parameter beside its initial value: whether it decays, and its precision.

A module says so of its own parameters, in ``policy``, a dict by name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

Decay = Literal["usual", "always", "all", "never"]
Precision = Literal["any", "fp32"]


@dataclass(frozen=True)
class Policy:
    """Of one parameter."""

    decay: Decay = "usual"
    """Whether weight decay pulls it towards zero: always; with ``train.decay`` all only; or never.
    A matrix usually does always, a vector with all."""
    precision: Precision = "any"
    """fp32: an engine that gathers parameters in bfloat16 gathers this one as it is. A log rate of
    -11.09 is stored in steps of 0.0625 there: a horizon is off by 3%, and what the optimizer adds
    is not seen for a hundred steps."""


def policy_of(module: nn.Module | type[nn.Module], name: str) -> Policy:
    """Of a module's own parameter."""
    own: Mapping[str, Policy] = getattr(module, "policy", {})
    return own.get(name, Policy())


def keeps_fp32(module: nn.Module | type[nn.Module]) -> list[str]:
    """Names of a module's own parameters that are gathered as they are."""
    own: Mapping[str, Policy] = getattr(module, "policy", {})
    return [name for name, policy in own.items() if policy.precision == "fp32"]


def decays(model: nn.Module) -> Iterator[tuple[str, Decay]]:
    """Every parameter's name and whether it decays, in the order of ``model.parameters()``."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            decay = policy_of(module, name).decay
            if decay == "usual":
                decay = "always" if parameter.dim() >= 2 else "all"
            yield f"{prefix}.{name}".removeprefix("."), decay
