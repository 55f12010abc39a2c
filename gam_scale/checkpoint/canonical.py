"""A checkpoint's canonical tensors: written as one engine's shards, read as any other's.

A folder holds one safetensors file per rank that saved it, whose tensors are parts of the model's
and the optimizer's (see :class:`~gam_scale.checkpoint.shard.Shard`), and ``index.json``, which says
where each part of each tensor is. A reader can read any part of any tensor, however it was cut.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from gam_scale import pulse
from gam_scale.checkpoint.cuts import Common, fault, runs, shared
from gam_scale.checkpoint.index import (
    DTYPES,
    INDEX,
    Entry,
    Index,
    open_tensors,
    read_index,
)
from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.checkpoint.state import load_state
from gam_scale.errors import UserError
from gam_scale.files import write_json
from gam_scale.strict import read_record


@dataclass
class _Note:
    """What a rank tells :func:`write_index` of the file that it has written."""

    file: str
    checksum: str
    places: dict[str, tuple[str, list[int], list[int], list[int]]]
    """For each tensor its dtype and whole shape, and the offset and extent of the part there."""


def write_shards(folder: Path, rank: int, n_ranks: int, shards: Iterable[Shard]) -> None:
    """Write one rank's shard file, and beside it the note that :func:`write_index` reads.

    Args:
        folder: the same for all ranks.
        shards: tensors on the CPU; no element of a tensor may be in two shards, of any ranks.
    """
    name = f"shard-{rank:05d}-of-{n_ranks:05d}.safetensors"
    parts = [shard for shard in shards if shard.data.numel()]
    checksum = _write_safetensors(folder / name, {s.key: s.data for s in parts})
    places = {
        s.key: (_dtype(s.data), list(s.shape), list(s.offset), list(s.data.shape)) for s in parts
    }
    note = {"file": name, "checksum": checksum, "places": places}
    write_json(_note(folder, rank), note, indent=None)


def write_index(folder: Path, n_ranks: int) -> dict[str, str]:
    """Merge the notes of all ranks into the index, once all ranks have written their shards.

    Returns:
        The checksum of every shard file, as its writer computed it.

    Raises:
        UserError: ranks disagree on a tensor, or their parts are not all of it.
    """
    tensors: dict[str, Entry] = {}
    checksums = {}
    for rank in range(n_ranks):
        note: _Note = read_record(_Note, _note(folder, rank))
        checksums[note.file] = note.checksum
        for key, (dtype, shape, offset, extent) in note.places.items():
            entry = tensors.setdefault(key, Entry(dtype, shape, []))
            if (dtype, shape) != (entry.dtype, entry.shape):
                raise UserError(
                    f"{folder}: {key} is {dtype} of {shape} in {note.file}, but "
                    f"{entry.dtype} of {entry.shape} in {entry.parts[0][0]}"
                )
            entry.parts.append((note.file, offset, extent))
    for key, entry in tensors.items():
        entry.parts.sort(key=lambda part: part[1])
        if wrong := fault(entry.grid, entry.boxes):
            raise UserError(f"{folder}: {key} {wrong}, in what the ranks have saved")
    index = {"format": 2, "tensors": {key: vars(entry) for key, entry in tensors.items()}}
    write_json(folder / INDEX, index, indent=None)
    for rank in range(n_ranks):
        _note(folder, rank).unlink()
    return checksums


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


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _dtype(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype in safetensors files."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    assert tensor.dtype in names, f"{tensor.dtype} is not saved"
    return names[tensor.dtype]


def _write_safetensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write tensors straight from memory; return the file's xxh3_128 in hex.

    The safetensors library's writer copies each tensor into bytes first, and cannot hash meanwhile.
    """
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in tensors.items():
        assert tensor.is_contiguous(), key
        header[key] = {
            "dtype": _dtype(tensor),
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
