"""A checkpoint's canonical tensors: written as one engine's shards, read as any other's.

A folder holds one safetensors file per rank that saved it, whose tensors are parts of the model's
and the optimizer's (see :class:`~gam_scale.checkpoint.shard.Shard`), and ``index.json``, which says
where each part of each tensor is. A reader can read any part of any tensor, however it was cut.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from gam_scale import pulse
from gam_scale.checkpoint.cuts import Common, runs, shared
from gam_scale.checkpoint.index import (
    DTYPES,
    Index,
    dtype_name,
    open_tensors,
    read_index,
)
from gam_scale.checkpoint.merge import write_note
from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.checkpoint.state import load_state
from gam_scale.errors import UserError


def write_shards(folder: Path, rank: int, n_ranks: int, shards: Iterable[Shard]) -> None:
    """Write one rank's shard file, and beside it the note that becomes part of the index.

    Args:
        folder: the same for all ranks.
        shards: tensors on the CPU; no element of a tensor may be in two shards, of any ranks.
    """
    name = f"shard-{rank:05d}-of-{n_ranks:05d}.safetensors"
    parts = [shard for shard in shards if shard.data.numel()]
    checksum = _write_safetensors(folder / name, {s.key: s.data for s in parts})
    write_note(folder, rank, name, checksum, parts)


class CanonicalTensors:
    """Reads any part of any tensor of a checkpoint folder; files that were read stay open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_index(folder)
        self.tensors, self._files = index.tensors, index.files()
        self._counts = _counts(folder, index) if index.format == 1 else {}
        self._open: dict[str, tuple[BufferedReader, dict[str, int]]] = {}

    def content(self) -> dict[str, tuple[list[int], torch.dtype]]:
        """Return the shape and dtype of every tensor, by ``KIND.NAME``."""
        content = {key: (e.shape, DTYPES[e.dtype]) for key, e in self.tensors.items()}
        return content | {key: ([], count.dtype) for key, count in self._counts.items()}

    @property
    def has_states(self) -> bool:
        """Whether the checkpoint has any optimizer states."""
        return any(not key.startswith(f"{PARAM}.") for key in self.tensors)

    def read(self, kind: str, name: str, offset: Sequence[int], extent: Sequence[int]) -> Tensor:
        """Read a box of a tensor or, with one number each, a range of it, and nothing else."""
        key = f"{kind}.{name}"
        if key in self._counts:
            return self._counts[key].clone()
        entry = self.tensors[key]

        def common(its_offset: Sequence[int], its_extent: Sequence[int]) -> Iterator[Common]:
            ours = runs(entry.shape, offset, extent)
            return shared(ours, runs(entry.shape, its_offset, its_extent))

        # The files are opened, and so checked, before memory is taken.
        needed = [
            (file_name, *self._file(file_name), place)
            for file_name, *place in entry.parts
            if next(common(*place), None)
        ]
        part = torch.empty(tuple(extent), dtype=DTYPES[entry.dtype])
        size = part.element_size()
        target = part.view(-1).view(torch.uint8).numpy()
        for file_name, file, begins, place in needed:
            for to, start, count in common(*place):
                # Not safetensors' memory map: its pages stay in memory until the file is closed.
                file.seek(begins[key] + size * start)
                piece = target[size * to : size * (to + count)]
                if file.readinto(piece.data) != piece.size:
                    raise UserError(f"{self.folder / file_name} was cut short while it was read")
                pulse.beat()
        return part

    def load_into(self, shards: Iterable[Shard]) -> None:
        """Fill shards from the checkpoint, one at a time; it must have all of their tensors."""
        for shard in shards:
            place = shard.offset, shard.data.shape
            shard.data.copy_(self.read(shard.kind, shard.name, *place))

    def _file(self, name: str) -> tuple[BufferedReader, dict[str, int]]:
        """Return a safetensors file, opened, and where in it the bytes of each tensor begin."""
        if name not in self._open:
            self._open[name] = open_tensors(self.folder / name, self._files[name])
        return self._open[name]


def _counts(folder: Path, index: Index) -> dict[str, Tensor]:
    """Return format 1's counts of applied steps: one for all parameters, from the run's state."""
    count = torch.tensor(float(load_state(folder).optimizer_steps))
    kinds_and_names = (key.split(".", 1) for key in index.tensors)
    names = {name for kind, name in kinds_and_names if kind != PARAM}
    return {f"step.{name}": count for name in names}


def _write_safetensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors straight from memory; return the file's xxh3_128 in hex.

    The safetensors library's writer copies each tensor into bytes first, and cannot hash meanwhile.
    """
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in tensors.items():
        assert tensor.is_contiguous(), key
        header[key] = {
            "dtype": dtype_name(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    digest = xxhash.xxh3_128()
    with open(path, "wb") as file:
        blocks: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
        for block in blocks + list(_buffers(tensors.values())):
            file.write(block)
            digest.update(block)
            pulse.beat()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _buffers(tensors: Iterable[Tensor]) -> Iterator[memoryview]:
    for tensor in tensors:
        yield tensor.view(-1).view(torch.uint8).numpy().data
