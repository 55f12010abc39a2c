"""State size: how many numbers a model remembers of a text; memories are compared at one size."""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from gam_scale.config import ModelConfig
from gam_scale.model.lm import LanguageModel

_MEMORIES = ("memory", "h")
"""Names that layers give to the state of a memory, and of a selective scan."""


@dataclass(frozen=True)
class StateSize:
    """Numbers held for one text of T tokens: ``constant + per_token * T``, plus those of windows.

    Each (numbers, tokens) of ``windows`` adds ``numbers * min(T, tokens)``.
    """

    constant: int
    per_token: int
    windows: tuple[tuple[int, int], ...] = ()

    def at(self, tokens: int) -> int:
        """Return the numbers held after ``tokens`` tokens."""
        within = sum(numbers * min(tokens, most) for numbers, most in self.windows)
        return self.constant + self.per_token * tokens + within

    def __str__(self) -> str:
        grows = bool(self.per_token or self.windows)
        parts = [f"{self.constant:,}"] if self.constant or not grows else []
        parts += [f"{self.per_token:,} T"] if self.per_token else []
        parts += [f"{numbers:,} min(T, {most:,})" for numbers, most in self.windows]
        return " + ".join(parts)


def state_size(config: ModelConfig) -> StateSize:
    """Count the tensors of ``init_state`` for one text; a complex number counts twice.

    A cache starts without tokens: with every token, a tensor with a dimension of 0 grows by the
    product of its other dimensions, as far back as its layer sees.
    """
    with torch.device("meta"):
        model = LanguageModel(config)
        states = model.init_state(1)["blocks"]
    constant, per_token, windows = 0, 0, Counter[int]()
    for block, state in zip(model.blocks, states, strict=True):
        sizes = [_numbers(tensor) for tensor in state.values()]
        constant += sum(a for a, _ in sizes)
        grows = sum(b for _, b in sizes)
        if block.reach is None:
            per_token += grows
        elif grows:
            windows[block.reach] += grows
    within = tuple((numbers, most) for most, numbers in sorted(windows.items()))
    return StateSize(constant, per_token, within)


def memory_size(config: ModelConfig) -> int:
    """Count the numbers that written memories hold of a text, without convolutions and caches.

    Papers call this the size of a state; memories are compared at equal values of it.
    """
    with torch.device("meta"):
        states = LanguageModel(config).init_state(1)["blocks"]
    named = [item for state in states for item in state.items()]
    return sum(_numbers(tensor)[0] for name, tensor in named if name in _MEMORIES)


def _numbers(tensor: Tensor) -> tuple[int, int]:
    """Return the numbers that a state tensor holds at first, and those that each token adds."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0, 0  # counters
    each = 2 if tensor.is_complex() else 1
    if tensor.numel() == 0:
        return 0, each * math.prod(n for n in tensor.shape if n)
    return each * tensor.numel(), 0
