"""How many numbers a model remembers of a text: what memories are compared at."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gam_scale.config import ModelConfig
from gam_scale.model.lm import LanguageModel


@dataclass(frozen=True)
class StateSize:
    """Numbers held for one text of T tokens: ``constant + per_token * T``."""

    constant: int
    per_token: int

    def at(self, tokens: int) -> int:
        """Numbers held after ``tokens`` tokens."""
        return self.constant + self.per_token * tokens

    def __str__(self) -> str:
        parts = [f"{self.constant:,}"] if self.constant or not self.per_token else []
        return " + ".join(parts + ([f"{self.per_token:,} T"] if self.per_token else []))


def state_size(config: ModelConfig) -> StateSize:
    """Count the tensors of ``init_state`` for one text; a complex number counts twice.

    A cache starts without tokens: a tensor with a dimension of 0 grows by what its other
    dimensions hold with every token.
    """
    with torch.device("meta"):
        state = LanguageModel(config).init_state(1)
    sizes = [_numbers(tensor) for tensor in _tensors(state["blocks"])]
    return StateSize(sum(a for a, _ in sizes), sum(b for _, b in sizes))


def _numbers(tensor: Tensor) -> tuple[int, int]:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0, 0  # counters
    each = 2 if tensor.is_complex() else 1
    if tensor.numel() == 0:
        return 0, each * math.prod(n for n in tensor.shape if n)
    return each * tensor.numel(), 0


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, dict) else state
    return [tensor for value in values for tensor in _tensors(value)] if values else []
