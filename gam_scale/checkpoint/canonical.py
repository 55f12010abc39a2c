"""The canonical tensors of a checkpoint: written in shards by any engine, read in any others.

A folder holds one safetensors file per rank that saved it, whose tensors are flat parts of the
model's (see :class:`~gam_scale.checkpoint.shard.Shard`), and ``index.json``, which says where each
part of each tensor is. Readers take any range of any tensor, whatever it was cut into.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from torch import Tensor

from gam_scale import pulse
from gam_scale.checkpoint.index import BYTES, INDEX, Entry, Index, open_tensors, read_index
from gam_scale.checkpoint.shard import Shard, check_tensors
from gam_scale.errors import UserError
from gam_scale.files import write_json
from gam_scale.strict import read_record


@dataclass
class _Note:
    """What a rank tells of the file that it has written."""

    file: str
    checksum: str
    places: dict[str, tuple[list[int], int, int]]
    """Shape of the whole tensor, and the elements that are here: from, and up to."""


def write_shards(folder: Path, rank: int, n_ranks: int, shards: Iterable[Shard]) -> None:
    """Write one rank's file, and beside it what :func:`write_index` needs to know of it.

    Args:
        folder: the same for all ranks.
        shards: fp32 on the CPU, no element of a tensor in two of them.
    """
    name = f"shard-{rank:05d}-of-{n_ranks:05d}.safetensors"
    parts = [shard for shard in shards if shard.data.numel()]
    checksum = _write_safetensors(folder / name, {s.key: s.data for s in parts})
    places = {s.key: (list(s.shape), s.start, s.start + s.data.numel()) for s in parts}
    write_json(_note(folder, rank), asdict(_Note(name, checksum, places)))


def write_index(folder: Path, n_ranks: int) -> dict[str, str]:
    """Merge the notes of all ranks, which have finished, into the index.

    Returns:
        The checksum of every shard file, as its writer computed it.
    """
    tensors: dict[str, Entry] = {}
    checksums = {}
    for rank in range(n_ranks):
        note: _Note = read_record(_Note, _note(folder, rank))
        checksums[note.file] = note.checksum
        for key, (shape, start, stop) in note.places.items():
            tensors.setdefault(key, Entry(shape, [])).parts.append((note.file, start, stop))
    for key, tensor in tensors.items():
        tensor.parts.sort(key=lambda part: part[1])
        covered = 0
        for _, start, stop in tensor.parts:
            assert start == covered, f"{key}: elements {covered} to {start} are in no shard"
            covered = stop
        assert covered == torch.Size(tensor.shape).numel(), f"{key} ends at {covered}"
    write_json(folder / INDEX, asdict(Index(1, tensors)))
    for rank in range(n_ranks):
        _note(folder, rank).unlink()
    return checksums


class CanonicalTensors:
    """The tensors of one checkpoint folder, read in any ranges; files stay open meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_index(folder)
        self.tensors, self._files = index.tensors, index.files()
        self._open: dict[str, tuple[BinaryIO, dict[str, int]]] = {}

    def keys(self, kind: str) -> list[str]:
        """Names of the parameters that have a tensor of this kind."""
        prefix = f"{kind}."
        return [key.removeprefix(prefix) for key in self.tensors if key.startswith(prefix)]

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return tuple(self.tensors[f"{kind}.{name}"].shape)

    def whole(self, kind: str, name: str) -> Tensor:
        """One tensor in its own shape, fp32 on the CPU."""
        shape = self.shape(kind, name)
        return self.read(kind, name, 0, torch.Size(shape).numel()).view(shape)

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor; nothing else is read."""
        key = f"{kind}.{name}"
        whole = torch.empty(stop - start)
        target = whole.view(torch.uint8).numpy()
        for name, first, last in self.tensors[key].parts:
            a, b = max(start, first), min(stop, last)
            if a < b:
                # Not the library's mapping: its pages stay in memory until the file is closed.
                file, offsets = self._file(name)
                file.seek(offsets[key] + BYTES * (a - first))
                part = target[BYTES * (a - start) : BYTES * (b - start)]
                if file.readinto(part) != part.size:
                    raise UserError(f"{self.folder / name} was cut short while it was read")
                pulse.beat()
        return whole

    def load_into(self, shards: Iterable[Shard], *, moments: bool = True) -> None:
        """Fill shards, one at a time; moments that were never saved, or not asked for, become zero.

        Raises:
            UserError: a parameter is missing, unknown or of another shape; a file is damaged.
        """
        shards = list(shards)
        found = {key: tensor.shape for key, tensor in self.tensors.items()}
        check_tensors(self.folder, found, {shard.name: shard.shape for shard in shards})
        for shard in shards:
            if shard.key in self.tensors and (moments or shard.kind == "param"):
                stop = shard.start + shard.data.numel()
                shard.data.copy_(self.read(shard.kind, shard.name, shard.start, stop))
            else:
                shard.data.zero_()

    def _file(self, name: str) -> tuple[BinaryIO, dict[str, int]]:
        """A safetensors file, and where in it the bytes of each tensor begin."""
        if name not in self._open:
            self._open[name] = open_tensors(self.folder / name, self._files[name])
        return self._open[name]


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _write_safetensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write flat fp32 tensors as they lie in memory; returns the file's xxh3_128 in hex.

    The library's own writer copies every tensor into bytes first and cannot hash on the way.
    """
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), key
        header[key] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts aligned
    digest = xxhash.xxh3_128()
    with open(path, "wb") as file:
        for block in (len(text).to_bytes(8, "little"), text, *_buffers(tensors.values())):
            file.write(block)
            digest.update(block)
            pulse.beat()
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _buffers(tensors: Iterable[Tensor]) -> Iterable[memoryview]:
    for tensor in tensors:
        yield memoryview(tensor.numpy()).cast("B")
