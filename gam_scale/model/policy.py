"""All that holds of a parameter beside its shape: one policy each, which its module declares.

A module says so of its own parameters in ``policy``, a dict by name: of the class, or of one
instance that differs.
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
    """What a parameter is drawn with."""

    generator: torch.Generator
    scheme: Literal["scaled", "paper"]
    n_layers: int


Rule = Callable[[Any, Tensor, Draw], None]
"""Fills a parameter with its initial value, in place: of its module, the parameter, a draw."""


@dataclass(frozen=True)
class Policy:
    """Of one parameter."""

    init: Rule
    role: Role
    """What it is to an optimizer: a matrix between hidden states, a gate's (it opens paths, or says
    how fast or how strongly a memory forgets and writes), a vector (whatever its shape, it acts on
    each channel alone), an embedding's or the head's rows."""
    decay: Decay
    """Whether weight decay pulls it towards zero: always; with ``train.decay`` all only; or never.
    """
    precision: Precision = "any"
    """fp32: an engine that gathers parameters in bfloat16 gathers this one as it is. A log rate of
    -11.09 is stored in steps of 0.0625 there: a horizon is off by 3%, and what the optimizer adds
    is not seen for a hundred steps."""
    lr: float = 1.0
    """Of the run's learning rate."""
    stack: tuple[int, ...] = ()
    """Rows of each of the matrices that stand in it one above the other; none: it is one matrix.
    What is to be orthogonal is each of them."""


def ones(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """1 throughout."""
    value.fill_(1.0)


def zeros(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """0 throughout."""
    value.zero_()


def linear_weight(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """scaled: a normal with the variance of torch's default uniform; paper: that uniform."""
    if draw.scheme == "paper":
        _torchs_uniform(module, value, draw)
    else:
        value.normal_(0.0, _linear_std(module), generator=draw.generator)


def residual_weight(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """Of a layer that writes to the residual stream twice: scaled shrinks it with depth."""
    _written(module, value, draw, times=2.0)


def only_residual_weight(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """Of a layer that writes to it once, having no feed-forward network."""
    _written(module, value, draw, times=1.0)


def linear_bias(module: nn.Linear, value: Tensor, draw: Draw) -> None:
    """scaled: 0; paper: torch's default."""
    if draw.scheme == "paper":
        _torchs_uniform(module, value, draw)
    else:
        value.zero_()


def token_rows(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """scaled: N(0, 0.02); paper: uniform as the head's linear layer, with which they are tied."""
    if draw.scheme == "scaled":
        value.normal_(0.0, EMBEDDING_STD, generator=draw.generator)
    else:
        bound = 1.0 / math.sqrt(value.shape[1])
        value.uniform_(-bound, bound, generator=draw.generator)


def position_rows(module: nn.Module, value: Tensor, draw: Draw) -> None:
    """scaled: N(0, 0.02); paper: N(0, 1)."""
    std = EMBEDDING_STD if draw.scheme == "scaled" else 1.0
    value.normal_(0.0, std, generator=draw.generator)


MATRIX = Policy(linear_weight, "matrix", "always")
GATE_MATRIX = replace(MATRIX, role="gate", decay="all")
TO_RESIDUAL = replace(MATRIX, init=residual_weight)
ONLY_TO_RESIDUAL = replace(MATRIX, init=only_residual_weight)
BIAS = Policy(linear_bias, "vector", "all")


def stacked(*rows: int) -> Policy:
    """Of a projection to several things: matrices of as many ``rows`` each."""
    return replace(MATRIX, stack=rows)


def policy_of(module: nn.Module, name: str) -> Policy:
    """Of a module's own parameter."""
    own: Mapping[str, Policy] = getattr(module, "policy", {})
    assert name in own, f"{type(module).__name__} has no policy of its parameter {name}"
    return own[name]


def policies(model: nn.Module) -> Iterator[tuple[str, Policy]]:
    """Every parameter's name and policy, in the order of ``model.parameters()``."""
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}".removeprefix("."), policy_of(module, name)


def keeps_fp32(module: nn.Module | type[nn.Module]) -> list[str]:
    """Names of a module's own parameters that are gathered as they are."""
    own: Mapping[str, Policy] = getattr(module, "policy", {})
    return [name for name, policy in own.items() if policy.precision == "fp32"]


def _written(module: nn.Linear, value: Tensor, draw: Draw, times: float) -> None:
    """What all layers add has the same variance at any depth, of ``times`` writes by each."""
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
