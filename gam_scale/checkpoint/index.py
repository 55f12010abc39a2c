"""What a checkpoint says of its tensors, believed only once it fits together to the last byte.

``index.json`` names every tensor, its shape, and the parts it was cut into; each part is a tensor
of its own in one of the safetensors files, whose header says where. Nothing is read of a file, and
no memory is taken for a tensor, before both agree.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from gam_scale.checkpoint.shard import KINDS
from gam_scale.errors import UserError, one_line
from gam_scale.files import open_regular
from gam_scale.strict import from_dict, parse_json, read_record

INDEX = "index.json"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Of a file in a checkpoint: no path, and nothing hidden."""
BYTES = 4
"""Of an fp32 number."""
LARGEST_HEADER = 100 << 20
"""Bytes, as the safetensors library has it."""


@dataclass
class Entry:
    """One whole tensor."""

    shape: list[int]
    parts: list[tuple[str, int, int]]
    """File, and the elements of the flattened tensor that it holds: from, and up to."""


@dataclass
class Index:
    """The content of ``index.json``."""

    format: Literal[1]
    tensors: dict[str, Entry]
    """By ``KIND.NAME``."""

    def files(self) -> dict[str, dict[str, int]]:
        """How many elements of which tensors each safetensors file holds."""
        found: dict[str, dict[str, int]] = {}
        for key, entry in self.tensors.items():
            for name, start, stop in entry.parts:
                found.setdefault(name, {})[key] = stop - start
        return found


@dataclass
class _Part:
    """An entry of a safetensors file's header."""

    dtype: Literal["F32"]
    shape: tuple[int]
    data_offsets: tuple[int, int]


def read_index(folder: Path) -> Index:
    """The index of a checkpoint, whole and consistent in itself.

    Raises:
        UserError: naming the file, and the tensor that is not what it should be.
    """
    path = folder / INDEX
    index: Index = read_record(Index, path)
    for key, entry in index.tensors.items():
        if problem := _problem(index, key, entry):
            raise UserError(f"{path}: {one_line(key)} {problem}; the checkpoint cannot be loaded")
    return index


def _problem(index: Index, key: str, entry: Entry) -> str:
    kind, _, name = key.partition(".")
    if kind not in KINDS or not name:
        return f"is no tensor of a model; expected a name and before it one of {', '.join(KINDS)}"
    parameter = index.tensors.get(f"param.{name}")
    if parameter is None or parameter.shape != entry.shape:
        return "has no parameter of its name and shape"
    if any(size < 1 for size in entry.shape):
        return f"has the shape {one_line(str(entry.shape))}"
    covered = 0
    for file, start, stop in entry.parts:
        if not FILE_NAME.fullmatch(file):
            return f"lies in {one_line(file)}, which is no name of a file in a checkpoint"
        if start != covered or stop <= start:
            return f"has elements {start} to {stop} where {covered} should be next"
        covered = stop
    if covered != math.prod(entry.shape):
        return f"ends at element {covered} of {math.prod(entry.shape)}"
    if len({file for file, _, _ in entry.parts}) < len(entry.parts):
        return "has several parts in one file"
    return ""


def open_tensors(path: Path, expected: dict[str, int]) -> tuple[BinaryIO, dict[str, int]]:
    """Open a safetensors file whose header agrees with the index.

    Args:
        path: of the file.
        expected: elements of each tensor that it should hold, flat and in fp32.

    Returns:
        The file, and where in it the bytes of each tensor begin.

    Raises:
        UserError: it holds anything else, or its bytes are not all accounted for.
    """
    file = open_regular(path)
    try:
        return file, _offsets(file, path, expected)
    except UserError as error:
        file.close()
        raise UserError(f"{error}; the checkpoint cannot be loaded") from None


def _offsets(file: BinaryIO, path: Path, expected: dict[str, int]) -> dict[str, int]:
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
        (elements,), (start, stop) = part.shape, part.data_offsets
        if elements != expected[key] or start != end or stop - start != BYTES * elements:
            raise UserError(f"{path}: {one_line(key)} is not where, or as large as, {INDEX} says")
        end = stop
    if 8 + length + end != size:
        raise UserError(f"{path} has {size:,} bytes; expected {8 + length + end:,}")
    return {key: 8 + length + part.data_offsets[0] for key, part in parts.items()}
