"""How parameters are stepped, and what is kept of each meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gam_scale.checkpoint.index import DTYPES, KIND
from gam_scale.checkpoint.shard import PARAM, StateSpec
from gam_scale.config import TrainConfig

Group = dict[str, Any]
"""A group of parameters as torch's optimizers take it: ``params``, and settings of its own."""


def _none(shape: Sequence[int], stack: Sequence[int]) -> float:
    return 0.0


@dataclass(frozen=True)
class Algorithm:
    """One of torch's optimizers, or one like them, and what must be known of it beforehand."""

    make: Callable[[list[Group], TrainConfig], torch.optim.Optimizer]
    """What steps some groups of parameters. It must take a state that stands in its ``state``
    already, made as :attr:`states` says, for its own first one."""
    states: Callable[[Sequence[int]], dict[str, StateSpec]]
    """By its own name, each tensor that it keeps of a parameter of this shape."""
    elementwise: bool
    """Whether elements are stepped each by itself, so that an engine may show it any part of a
    parameter: every state then has the parameter's shape, or is one number that is the same for all
    parameters that were stepped as often. Others are shown whole parameters."""
    flops: Callable[[Sequence[int], Sequence[int]], float] = _none
    """Of a step of a parameter of a shape and a stack of matrices (see
    :attr:`gam_scale.model.policy.Policy.stack`), in matrix products."""
    additive: bool = False
    """Whether what it adds to a parameter does not depend on it, but for decoupled weight decay. Of
    parameters that an engine has cut, gradients alone are then sent to be stepped whole."""

    def check(self, shape: Sequence[int]) -> None:
        """What it declares of a parameter of this shape can be cut and saved."""
        for kind, state in self.states(shape).items():
            assert KIND.fullmatch(kind) and kind != PARAM, f"{kind!r} is no name of a state"
            assert state.dtype in DTYPES.values(), f"{kind} is {state.dtype}, which is not saved"
            # Of no elements, it would be in no file, and the checkpoint be refused for its lack.
            assert 0 not in state.shape, f"{kind} of shape {state.shape} has no elements to save"
            fits = not self.elementwise or state.shape in ((), tuple(shape))
            assert fits, f"{kind} of shape {state.shape} cannot be cut as a {tuple(shape)} is"


def check_kept(kept: Mapping[str, Tensor], declared: Mapping[str, StateSpec]) -> None:
    """What is kept of a parameter is what was declared: else no checkpoint of it would load."""
    actual = {kind: (tuple(tensor.shape), tensor.dtype) for kind, tensor in kept.items()}
    expected = {kind: (state.shape, state.dtype) for kind, state in declared.items()}
    assert actual == expected, f"an optimizer keeps {actual}, but declares {expected}"


def _adamw(groups: list[Group], train: TrainConfig) -> torch.optim.Optimizer:
    betas = (train.beta1, train.beta2)
    return torch.optim.AdamW(groups, lr=train.lr, betas=betas, eps=train.eps, fused=True)


def _moments(shape: Sequence[int]) -> dict[str, StateSpec]:
    whole = tuple(shape)
    return {"step": StateSpec(()), "exp_avg": StateSpec(whole), "exp_avg_sq": StateSpec(whole)}


ADAMW = Algorithm(_adamw, _moments, elementwise=True)
"""Decoupled weight decay, arXiv 1711.05101, in torch's fused form."""
