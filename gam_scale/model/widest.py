"""The dtype of sums whose rounding would be seen: float64, on devices that have it."""

import torch

WITH_FLOAT64 = ("cpu", "cuda")
"""Kinds of devices that have it; Apple's GPUs do not."""


def widest(device: torch.device | str) -> torch.dtype:
    """The widest floating dtype there."""
    return torch.float64 if torch.device(device).type in WITH_FLOAT64 else torch.float32
