"""Optimizer algorithms: how parameters are stepped, and which states are kept for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gam_scale.checkpoint.index import DTYPES, KIND
from gam_scale.checkpoint.shard import PARAM, StateSpec
from gam_scale.config import TrainConfig

Group = dict[str, Any]
"""A parameter group as torch's optimizers take it: ``params`` and the group's own settings."""


def _none(shape: Sequence[int], stack: Sequence[int]) -> float:
    return 0.0


@dataclass(frozen=True)
class Algorithm:
    """An optimizer with torch's interface, and what engines and plans must know about it."""

    make: Callable[[list[Group], TrainConfig], torch.optim.Optimizer]
    """Makes the optimizer that steps some groups. If its ``state`` already holds a parameter's
    states, made as :attr:`states` declares, the optimizer must start from those."""
    states: Callable[[Sequence[int]], dict[str, StateSpec]]
    """Declares, by name, each tensor that the optimizer keeps for a parameter of a shape."""
    elementwise: bool
    """Whether each element is stepped independently, so that an engine may pass any part of a
    parameter. Every state then has the parameter's shape, or is one number that is the same for all
    parameters stepped equally often. An algorithm that is not elementwise gets whole parameters."""
    flops: Callable[[Sequence[int], Sequence[int]], float] = _none
    """FLOPs in matrix products of one step of a parameter, from its shape and its stack of matrices
    (see :attr:`gam_scale.model.policy.Policy.stack`)."""
    additive: bool = False
    """Whether the update added to a parameter is independent of the parameter's value, apart from
    decoupled weight decay. To step a parameter that an engine has cut, only its gradient is then
    sent to its owner, not its value."""

    def check(self, shape: Sequence[int]) -> None:
        """Assert that the states declared for a parameter of this shape can be cut and saved."""
        for kind, state in self.states(shape).items():
            assert KIND.fullmatch(kind) and kind != PARAM, f"{kind!r} is no name of a state"
            assert state.dtype in DTYPES.values(), f"{kind} is {state.dtype}, which is not saved"
            # A state without elements would be in no file: the checkpoint would lack it.
            assert 0 not in state.shape, f"{kind} of shape {state.shape} has no elements to save"
            fits = not self.elementwise or state.shape in ((), tuple(shape))
            assert fits, f"{kind} of shape {state.shape} cannot be cut as a {tuple(shape)} is"


def check_kept(kept: Mapping[str, Tensor], declared: Mapping[str, StateSpec]) -> None:
    """Assert that a parameter's states are those declared: no checkpoint would load otherwise."""
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
"""Adam with decoupled weight decay (arXiv 1711.05101), in torch's fused form."""
