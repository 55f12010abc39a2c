"""The states that training rows carry on, beside the canonical tensors: one file per rank."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_carried(folder: Path, rank: int, states: Mapping[str, Tensor]) -> None:
    """Write the states of this rank's rows, along dim 0 of every tensor; on the CPU."""
    save_file(dict(states), folder / f"carried-{rank:05d}.safetensors")


def read_carried(folder: Path, start: int, rows: int, device: torch.device) -> dict[str, Tensor]:
    """The states of ``rows`` rows of the global batch from ``start`` on, whoever wrote them.

    Returns:
        Nothing where nothing was carried, as at the start of an epoch.
    """
    # Ranks hold the rows of the global batch in order.
    parts = [load_file(path) for path in sorted(folder.glob("carried-*.safetensors"))]
    if not parts:
        return {}
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return {key: value[start : start + rows].to(device) for key, value in whole.items()}
