"""A checkpoint's index of its tensors, trusted only once it agrees with the files to the last byte.

``index.json`` names every tensor, its shape, and the parts it was cut into; each part is a tensor
of its own in one of the safetensors files, whose header says where. Before index and header agree,
nothing else of a file is read and no memory is taken for a tensor.
"""

import math
import os
import re
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

import torch

from gam_scale.checkpoint.cuts import Box, fault, grid_of
from gam_scale.checkpoint.shard import PARAM
from gam_scale.errors import UserError, one_line
from gam_scale.files import open_regular
from gam_scale.strict import from_dict, parse_json, read_json, shown

INDEX = "index.json"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Matches the name of a file in a checkpoint: no path, and nothing hidden."""
KIND = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Matches a tensor's kind, which stands before its parameter's name."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by their names in safetensors files."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100 << 20
"""Most bytes of a safetensors header: the library's own limit."""
Content = dict[str, tuple[str, tuple[int, ...]]]
"""A safetensors file's content: dtype and shape of each tensor."""


@dataclass
class Entry:
    """The index's entry of one whole tensor."""

    dtype: str
    shape: list[int]
    parts: list[tuple[str, list[int], list[int]]]
    """For each part its file, and its offset and extent: in each dimension of the tensor or, for a
    range of the flattened tensor, one number each."""

    @property
    def boxes(self) -> list[Box]:
        """Offset and extent of each part."""
        return [(offset, extent) for _, offset, extent in self.parts]

    @property
    def grid(self) -> tuple[int, ...]:
        """The shape that is cut, going by the first part: the tensor's or the flattened one."""
        return grid_of(self.shape, self.parts[0][1] if self.parts else self.shape)


@dataclass
class Index:
    """The content of ``index.json``."""

    format: Literal[1, 2]
    """The format in which the index was written."""
    tensors: dict[str, Entry]
    """Entries by ``KIND.NAME``."""

    def files(self) -> dict[str, Content]:
        """Return what each safetensors file holds, by the file's name."""
        contents: dict[str, Content] = {}
        for key, entry in self.tensors.items():
            for name, _, extent in entry.parts:
                contents.setdefault(name, {})[key] = entry.dtype, tuple(extent)
        return contents


@dataclass
class _FormerEntry:
    shape: list[int]
    parts: list[tuple[str, int, int]]
    """For each part its file, and the range of the flattened tensor: first element and end."""


@dataclass
class _FormerIndex:
    """The index of format 1: float32 only, ranges only and, of Adam's states, the moments only."""

    format: Literal[1]
    tensors: dict[str, _FormerEntry]

    def as_index(self) -> Index:
        """Return the same index as an :class:`Index`."""
        return Index(1, {key: self._entry(entry) for key, entry in self.tensors.items()})

    @staticmethod
    def _entry(entry: _FormerEntry) -> Entry:
        parts = [(file, [start], [stop - start]) for file, start, stop in entry.parts]
        return Entry("F32", entry.shape, parts)


@dataclass
class _Part:
    """An entry of a safetensors file's header."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name of a tensor's dtype in safetensors files."""
    assert tensor.dtype in _NAMES, f"{tensor.dtype} is not saved"
    return _NAMES[tensor.dtype]


def read_index(folder: Path) -> Index:
    """Read a checkpoint's index, and check that it is complete and consistent in itself.

    Raises:
        UserError: naming the file, and the tensor that is not what it should be.
    """
    path = folder / INDEX
    index = _read(path)
    for key, entry in index.tensors.items():
        if problem := _problem(index, key, entry):
            raise UserError(f"{path}: {one_line(key)} {problem}; the checkpoint cannot be loaded")
    return index


def _read(path: Path) -> Index:
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path} is {shown(data)}; expected an object")
    try:
        if data.get("format") == 1:
            return from_dict(_FormerIndex, data).as_index()
        return from_dict(Index, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _problem(index: Index, key: str, entry: Entry) -> str:
    kind, _, name = key.partition(".")
    if not KIND.fullmatch(kind) or not name:
        return f"is no tensor of a model; expected {PARAM} or an optimizer's state, and a name"
    if f"{PARAM}.{name}" not in index.tensors:
        return "has no parameter of its name"
    if entry.dtype not in DTYPES or (kind == PARAM and entry.dtype != "F32"):
        expected = "F32" if kind == PARAM else f"one of {', '.join(DTYPES)}"
        return f"has the dtype {shown(entry.dtype)}; expected {expected}"
    if any(size < 1 for size in entry.shape):
        return f"has the shape {one_line(str(entry.shape))}"
    for file, _, _ in entry.parts:
        if not FILE_NAME.fullmatch(file):
            return f"lies in {one_line(file)}, which is no name of a file in a checkpoint"
    if len({file for file, _, _ in entry.parts}) < len(entry.parts):
        return "has several parts in one file"
    return fault(entry.grid, entry.boxes)


def open_tensors(path: Path, expected: Content) -> tuple[BufferedReader, dict[str, int]]:
    """Open a safetensors file, and check that its header agrees with the index.

    Args:
        path: of the file.
        expected: dtype and shape of each tensor that it should hold.

    Returns:
        The file, and where in it the bytes of each tensor begin.

    Raises:
        UserError: the file holds anything else, or its bytes are not all accounted for.
    """
    file = open_regular(path)
    try:
        return file, _offsets(file, path, expected)
    except UserError as error:
        file.close()
        raise UserError(f"{error}; the checkpoint cannot be loaded") from None


def _offsets(file: BufferedReader, path: Path, expected: Content) -> dict[str, int]:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(size - 8, LARGEST_HEADER):
        raise UserError(f"{path} is no safetensors file")
    header = parse_json(file.read(length).decode("utf-8", "replace"), str(path))
    if not isinstance(header, dict) or header.keys() != expected.keys():
        raise UserError(f"{path} holds other tensors than {INDEX} says")
    parts = {
        key: from_dict(_Part, value, f"{path}: {one_line(key)}") for key, value in header.items()
    }
    end = 0
    for key, part in sorted(parts.items(), key=lambda item: item[1].data_offsets):
        (dtype, shape), (start, stop) = expected[key], part.data_offsets
        if part.dtype != dtype or tuple(part.shape) != shape:
            raise UserError(
                f"{path}: {one_line(key)} is no {dtype} of {list(shape)}, as {INDEX} says"
            )
        if start != end or stop - start != DTYPES[dtype].itemsize * math.prod(shape):
            raise UserError(f"{path}: {one_line(key)} is not where, or as large as, {INDEX} says")
        end = stop
    if 8 + length + end != size:
        raise UserError(f"{path} has {size:,} bytes; expected {8 + length + end:,}")
    return {key: 8 + length + part.data_offsets[0] for key, part in parts.items()}
