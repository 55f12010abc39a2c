"""What the ranks note of the files that they have written, merged into a checkpoint's index."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from gam_scale.checkpoint.cuts import fault
from gam_scale.checkpoint.index import INDEX, Entry, dtype_name
from gam_scale.checkpoint.shard import Shard
from gam_scale.errors import UserError
from gam_scale.files import json_bytes, write_bytes
from gam_scale.strict import from_dict, parse_json


@dataclass
class _Note:
    """A rank's note, in two lines: the file and its checksum, then the places."""

    file: str
    checksum: str


@dataclass
class _Places:
    places: dict[str, tuple[str, list[int], list[int], list[int]]]
    """For each tensor its dtype and whole shape, and the offset and extent of the part there."""


def write_note(folder: Path, rank: int, file: str, checksum: str, parts: Iterable[Shard]) -> None:
    """Note for :class:`IndexWriter` what ``rank`` has written into ``file``."""
    places = {
        s.key: (dtype_name(s.data), list(s.shape), list(s.offset), list(s.data.shape))
        for s in parts
    }
    lines = {"file": file, "checksum": checksum}, {"places": places}
    write_bytes(_note(folder, rank), b"".join(map(json_bytes, lines)))


class IndexWriter:
    """Writes the index of a run's checkpoints, one after another.

    The ranks of a process group cut the same tensors in the same way at each save, so the index of
    one checkpoint is that of the next; it is merged anew only where a note says otherwise. With a
    thousand ranks, merging takes most of a minute in which they all wait.
    """

    def __init__(self) -> None:
        self._merged_from: list[str] = []  # a hash of each rank's file and places
        self._index = b""

    def write(self, folder: Path, n_ranks: int) -> dict[str, str]:
        """Write the index, once all ranks have written their shards and their notes.

        Returns:
            The checksum of every shard file, as its writer computed it.

        Raises:
            UserError: ranks disagree on a tensor, or their parts are not all of it.
        """
        notes, places = zip(*(_read(_note(folder, rank)) for rank in range(n_ranks)), strict=True)
        hashes = [
            xxhash.xxh3_128_hexdigest(note.file.encode() + b"\n" + place)
            for note, place in zip(notes, places, strict=True)
        ]
        if hashes != self._merged_from:
            self._index = _merge(folder, notes, places)
            self._merged_from = hashes
        write_bytes(folder / INDEX, self._index)
        for rank in range(n_ranks):
            _note(folder, rank).unlink()
        return {note.file: note.checksum for note in notes}


def _merge(folder: Path, notes: Iterable[_Note], places: Iterable[bytes]) -> bytes:
    tensors: dict[str, Entry] = {}
    for note, text in zip(notes, places, strict=True):
        where = f"{folder}: what is noted of {note.file}"
        its: _Places = from_dict(_Places, parse_json(text.decode(), where), where)
        for key, (dtype, shape, offset, extent) in its.places.items():
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
    return json_bytes(
        {"format": 2, "tensors": {key: vars(entry) for key, entry in tensors.items()}}
    )


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _read(path: Path) -> tuple[_Note, bytes]:
    head, places = path.read_bytes().splitlines()
    return from_dict(_Note, parse_json(head.decode(), str(path)), str(path)), places
