"""Random tokens on which the implementations of a layer are compared."""

from collections.abc import Callable

import torch
from torch import Tensor

from gam_scale.model.layout import Layout

ROWS, LENGTH = 2, 200
"""A few chunks of the kernels', the last one ragged."""


def trial_layout() -> Layout:
    """A document that starts within a chunk of the first row; a second row that goes on."""
    positions = torch.arange(LENGTH, device="cpu").repeat(ROWS, 1)
    positions[0, 70:] -= 70
    positions[1] += 5
    return Layout.of(positions)


def trial_numbers() -> Callable[..., Tensor]:
    """Draws normal numbers of a shape, the same at each start, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator, device="cpu")
