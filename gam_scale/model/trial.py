"""Random inputs on which the implementations of a layer are compared."""

from collections.abc import Callable

import torch
from torch import Tensor

from gam_scale.model.layout import Layout

ROWS, LENGTH = 2, 200
"""A row is a few chunks of the kernels, the last one incomplete."""


def trial_layout() -> Layout:
    """Make a layout: a document starts within a chunk of row 0, and row 1 continues a text."""
    positions = torch.arange(LENGTH, device="cpu").repeat(ROWS, 1)
    positions[0, 70:] -= 70
    positions[1] += 5
    return Layout.of(positions)


def trial_numbers() -> Callable[..., Tensor]:
    """Return a function that draws normal numbers of a shape, from a fixed seed, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu")
