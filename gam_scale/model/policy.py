"""Policies: how each parameter is initialised, optimised and gathered.

A module declares those of its own parameters in ``policy``, a dict by parameter name: of the
class, or of an instance that differs from its class.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

Decay = Literal["always", "all", "never"]
Role = Literal["matrix", "gate", "vector", "embedding", "head"]
Precision = Literal["any", "fp32"]

EMBEDDING_STD = 0.02


class Draw(NamedTuple):
    """The arguments of a parameter's initial draw."""

    generator: torch.Generator
    scheme: Literal["scaled", "paper"]
    n_layers: int


Rule = Callable[[Any, Tensor, Draw], None]
"""Fills a parameter in place with its initial value, given its module, itself and a draw."""


@dataclass(frozen=True)
class Policy:
    """The policy of one parameter."""

    init: Rule
    role: Role
    """What the parameter is to an optimizer: a matrix between hidden states; a gate's matrix, which
    opens paths or decides how fast or how strongly a memory forgets and writes; a vector, which
    acts on each channel alone, whatever its shape; the rows of an embedding or of the head."""
    decay: Decay
    """When weight decay applies: always, never, or (all) only with ``train.decay`` all."""
    precision: Precision = "any"
    """fp32: an engine that gathers parameters in bfloat16 gathers this one as it is. In bfloat16, a
    log rate of -11.09 is stored in steps of 0.0625: a horizon is off by 3%, and the optimizer's
    updates have no effect for a hundred steps."""
    lr: float = 1.0
    """Factor on the run's learning rate."""
    stack: tuple[int, ...] = ()
    """Rows of each matrix if the parameter holds several, one above the other; empty: it is one.
    Muon makes the update of each matrix orthogonal."""


def ones(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """Fill with ones."""
    value.fill_(1.0)


def zeros(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """Fill with zeros."""
    value.zero_()


def linear_weight(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """Draw a weight: torch's default uniform (paper) or a normal of its variance (scaled)."""
    if draw.scheme == "paper":
        _torchs_uniform(module, value, draw)
    else:
        value.normal_(0.0, _linear_std(module), generator=draw.generator)


def residual_weight(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """Draw an output weight of a layer that writes to the residual stream twice."""
    _written(module, value, draw, times=2.0)


def only_residual_weight(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """Draw the output weight of a layer without a feed-forward network, which writes once."""
    _written(module, value, draw, times=1.0)


def linear_bias(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """Fill a bias: torch's default uniform (paper) or 0 (scaled)."""
    if draw.scheme == "paper":
        _torchs_uniform(module, value, draw)
    else:
        value.zero_()


def token_rows(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """Draw token rows: uniform as the tied head's linear layer (paper) or N(0, 0.02) (scaled)."""
    if draw.scheme == "scaled":
        value.normal_(0.0, EMBEDDING_STD, generator=draw.generator)
    else:
        bound = 1.0 / math.sqrt(value.shape[1])
        value.uniform_(-bound, bound, generator=draw.generator)


def position_rows(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """Draw position embeddings: N(0, 1) (paper) or N(0, 0.02) (scaled)."""
    std = EMBEDDING_STD if draw.scheme == "scaled" else 1.0
    value.normal_(0.0, std, generator=draw.generator)


MATRIX = Policy(linear_weight, "matrix", "always")
GATE_MATRIX = replace(MATRIX, role="gate", decay="all")
TO_RESIDUAL = replace(MATRIX, init=residual_weight)
ONLY_TO_RESIDUAL = replace(MATRIX, init=only_residual_weight)
BIAS = Policy(linear_bias, "vector", "all")


def stacked(*rows: int) -> Policy:
    """Return the policy of a projection that stacks matrices of ``rows`` rows each."""
    return replace(MATRIX, stack=rows)


def policy_of(module: nn.Module, name: str) -> Policy:
    """Return the policy of a module's own parameter."""
    own: Mapping[str, Policy] = getattr(module, "policy", {})
    assert name in own, f"{type(module).__name__} has no policy of its parameter {name}"
    return own[name]


def policies(model: nn.Module) -> Iterator[tuple[str, Policy]]:
    """Yield every parameter's name and policy, in the order of ``model.parameters()``."""
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}".removeprefix("."), policy_of(module, name)


def keeps_fp32(module: nn.Module | type[nn.Module]) -> list[str]:
    """Return the names of a module's own parameters that engines gather as they are."""
    own: Mapping[str, Policy] = getattr(module, "policy", {})
    return [name for name, policy in own.items() if policy.precision == "fp32"]


def _written(module: nn.Linear, value: Tensor, draw: Draw, times: float) -> None:
    """Draw an output weight of a layer that writes to the residual stream ``times`` times.

    With scaled, the sum of all layers' writes has the same variance at any depth.
    """
    if draw.scheme == "paper":
        _torchs_uniform(module, value, draw)
    else:
        std = _linear_std(module) / math.sqrt(times * draw.n_layers)
        value.normal_(0.0, std, generator=draw.generator)


def _linear_std(module: nn.Linear) -> float:
    return 1.0 / math.sqrt(3.0 * module.in_features)  # the variance of torch's default uniform


def _torchs_uniform(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    bound = 1.0 / math.sqrt(module.in_features)
    value.uniform_(-bound, bound, generator=draw.generator)
