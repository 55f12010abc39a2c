"""States that training rows carry on to the next batch, in a checkpoint: one file per rank."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gam_scale.checkpoint.verify import read_checksums
from gam_scale.errors import UserError, one_line
from gam_scale.files import open_regular

CARRIED = re.compile(r"carried-[0-9]{5}\.safetensors")
"""Matches the name of a rank's file."""


def write_carried(folder: Path, rank: int, states: Mapping[str, Tensor]) -> None:
    """Write the states of this rank's rows: tensors on the CPU, with the rows along dim 0."""
    try:
        save_file(dict(states), folder / f"carried-{rank:05d}.safetensors")
    except SafetensorError as error:  # a full disk, too
        raise OSError(str(error)) from None


def read_carried(folder: Path, start: int, rows: int, device: torch.device) -> dict[str, Tensor]:
    """Read the states of ``rows`` rows of the global batch from ``start`` on, whoever wrote them.

    Returns:
        The states by name; empty if nothing was carried, as at the start of an epoch.

    Raises:
        UserError: a file is damaged, or the files do not hold these rows.
    """
    # Ranks hold the rows of the global batch in order.
    names = sorted(filter(CARRIED.fullmatch, read_checksums(folder)))
    parts = [_read(folder / name) for name in names]
    if not parts:
        return {}
    try:
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    except (KeyError, RuntimeError, TypeError):  # other tensors, shapes or types than in the first
        raise UserError(f"{folder}: its carried states do not fit together") from None
    lengths = {len(value) for value in whole.values()}
    if lengths and min(lengths) < start + rows:
        raise UserError(
            f"{folder}: it has the carried states of {min(lengths)} rows; expected at least "
            f"{start + rows}, as train.global_batch_size says"
        )
    return {key: value[start : start + rows].to(device) for key, value in whole.items()}


def _read(path: Path) -> dict[str, Tensor]:
    with open_regular(path):  # refuses what is no ordinary file, with a message of ours
        pass
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {one_line(str(error))}") from None
