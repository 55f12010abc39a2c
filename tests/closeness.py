"""Comparisons that NaN does not pass.

``max(0.1, nan)`` is 0.1, ``not nan > limit`` is true, NaN is "not equal" to everything, "any" of it
is true, and a list that holds it may equal itself sorted: a comparison made of these holds for
results that are broken.
"""

import math
import operator
from collections.abc import Iterable

import torch
from torch import Tensor


def off(found: Tensor, expected: Tensor) -> float:
    """How far ``found`` lies from ``expected``, over the size of that; infinite if either is not
    finite throughout."""
    found, expected = found.detach().double(), expected.detach().double()
    distance = (found - expected).norm()
    return worst([float(distance / expected.norm())]) if distance != 0 else 0.0


def worst(differences: Iterable[float]) -> float:
    """The largest; infinite if there is none, or one is not a finite number."""
    differences = list(differences)
    finite = differences and all(map(math.isfinite, differences))
    return max(differences) if finite else math.inf


def least(values: Iterable[float]) -> float:
    """The smallest; minus infinity if there is none, or one is not a finite number."""
    return -worst(-value for value in values)


def rises(values: Iterable[float]) -> bool:
    """Whether no value is below the one before, and all are finite."""
    values = list(values)  # not values == sorted(values): a list equals itself, NaN and all
    return all(map(math.isfinite, values)) and all(map(operator.le, values, values[1:]))


def is_alive(x: Tensor | None) -> bool:
    """Whether there are numbers, all finite, and some that are not zero."""
    return x is not None and bool(torch.isfinite(x).all()) and bool(x.any())


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of finite numbers are not the same."""
    finite = bool(torch.isfinite(one).all()) and bool(torch.isfinite(other).all())
    return finite and not torch.equal(one, other)
