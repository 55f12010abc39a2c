"""The dtype of sums whose rounding would matter: float64, on devices that have it."""

import torch

WITH_FLOAT64 = ("cpu", "cuda")
"""Types of devices with float64; Apple's GPUs have none."""


def widest(device: torch.device | str) -> torch.dtype:
    """Return the widest floating-point dtype of ``device``."""
    return torch.float64 if torch.device(device).type in WITH_FLOAT64 else torch.float32
