"""States that training rows carry on to the next batch, in a checkpoint: one file per rank."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
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
    parts: list[dict[str, Tensor]] = []
    before = 0  # rows in earlier files
    for name in names:
        n, part = _read(folder / name, start - before, start + rows - before)
        parts += [part] if part else []
        before += n
    if names and before < start + rows:
        raise UserError(
            f"{folder}: it has the carried states of {before} rows; expected at least "
            f"{start + rows}, as train.global_batch_size says"
        )
    if not parts:
        return {}
    try:
        return {key: torch.cat([part[key] for part in parts]).to(device) for key in parts[0]}
    except (KeyError, RuntimeError, TypeError):  # other tensors, shapes or types than in the first
        raise UserError(f"{folder}: its carried states do not fit together") from None


def _read(path: Path, start: int, end: int) -> tuple[int, dict[str, Tensor]]:
    """Return the number of rows in a file, and those from ``start`` to ``end`` that it has."""
    with open_regular(path):  # refuses what is no ordinary file, with a message of ours
        pass
    try:
        with safe_open(path, "pt") as file:
            keys = file.keys()  # an open file is no mapping
            slices = {key: file.get_slice(key) for key in keys}
            n = min((each.get_shape()[0] for each in slices.values()), default=0)
            start, end = max(start, 0), min(end, n)
            return n, {key: each[start:end] for key, each in slices.items() if start < end}
    except (SafetensorError, OSError, IndexError) as error:
        raise UserError(f"{path} cannot be read: {one_line(str(error))}") from None
