"""Comparisons that fail on NaN.

Python's own may pass on broken results: ``max(0.1, nan)`` is 0.1, ``not nan > limit`` is true, NaN
is "not equal" to everything, ``any`` takes NaN for true, and a list that holds NaN may equal itself
sorted.
"""

import math
import operator
from collections.abc import Iterable

import torch
from torch import Tensor


def off(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of ``expected``.

    It is infinite if any element of either is not finite.
    """
    found, expected = found.detach().double(), expected.detach().double()
    distance = (found - expected).norm()
    return worst([float(distance / expected.norm())]) if distance != 0 else 0.0


def worst(differences: Iterable[float]) -> float:
    """Return the largest value; infinity if there is none or any is not finite."""
    differences = list(differences)
    finite = differences and all(map(math.isfinite, differences))
    return max(differences) if finite else math.inf


def least(values: Iterable[float]) -> float:
    """Return the smallest value; minus infinity if there is none or any is not finite."""
    return -worst(-value for value in values)


def rises(values: Iterable[float]) -> bool:
    """Return whether no value is below the one before, and all are finite."""
    values = list(values)  # not values == sorted(values): a list equals itself, NaN and all
    return all(map(math.isfinite, values)) and all(map(operator.le, values, values[1:]))


def is_alive(x: Tensor | None) -> bool:
    """Return whether a tensor is given, all finite and not all zero."""
    return x is not None and bool(torch.isfinite(x).all()) and bool(x.any())


def differ(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors differ and are both finite throughout."""
    finite = bool(torch.isfinite(one).all()) and bool(torch.isfinite(other).all())
    return finite and not torch.equal(one, other)
