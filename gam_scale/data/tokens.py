"""Read documents that come as token ids, in files of nanoGPT, llm.c, Megatron, numpy or MDS."""

import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from gam_scale.data.documents import TokenIds, files_fingerprint
from gam_scale.data.mds import import_streaming
from gam_scale.data.rows import LeftOut
from gam_scale.errors import UserError
from gam_scale.files import open_regular, read_regular
from gam_scale.strict import read_json, shown

SUFFIXES = (".bin", ".npy")
INDEX = "index.json"  # of a folder of MDS shards
COLUMNS = ("tokens", "input_ids")
READ_IDS = 1 << 22
LONGEST = 1 << 26  # ids after which a longer document is cut
LLM_C = {20240520: "uint16", 20240801: "uint32"}  # dtype of the ids by llm.c's magic number
LLM_C_HEADER = 256 * 4  # bytes: 256 int32, of which the magic number is the first
MEGATRON = b"MMIDIDX\x00\x00"
MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}


@dataclass(frozen=True)
class TokenReading:
    """How token files are read.

    ``separators`` are the ids between documents; ``dtype`` is for a ``.bin`` without a header.
    """

    separators: tuple[int, ...] = ()
    dtype: Literal["uint16", "uint32"] = "uint16"


@dataclass(frozen=True)
class TokenSource:
    """Files of ids, or one folder of MDS shards; see :func:`is_tokens`."""

    spec: str
    paths: tuple[Path, ...]
    how: TokenReading = TokenReading()
    left_out: LeftOut = field(default_factory=LeftOut, compare=False)

    def documents(self) -> Iterator[TokenIds]:
        for path in self.paths:
            yield from cut(_streams(path, self.how), self.how.separators)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "tokens",
            "spec": self.spec,
            "separators": list(self.how.separators),
            "dtype": self.how.dtype,
            **files_fingerprint([file for path in self.paths for file in _files(path)]),
        }

    text_bytes = None


def is_tokens(path: Path) -> bool:
    """Return whether ``path`` is a ``.bin`` or ``.npy`` file, or a folder of MDS shards."""
    if not (path / INDEX).is_file():
        return path.suffix in SUFFIXES and path.is_file()
    index = read_json(path / INDEX)
    return isinstance(index, dict) and isinstance(index.get("shards"), list)


def cut(streams: Iterable[np.ndarray], separators: Sequence[int]) -> Iterator[TokenIds]:
    """Cut a sequence of arrays of ids into documents, at separators and at empty arrays.

    Empty documents are dropped; a document that reaches :data:`LONGEST` ids is cut there.
    """
    held: list[np.ndarray] = []
    length = 0
    for stream in streams:
        ends: list[int] = np.flatnonzero(np.isin(stream, separators)).tolist()
        for start, end in zip([0, *(e + 1 for e in ends)], [*ends, len(stream)], strict=True):
            held.append(stream[start:end])
            length += end - start
            if end < len(stream) or not len(stream) or length >= LONGEST:
                if length:
                    yield TokenIds(np.concatenate(held))
                held, length = [], 0
    if length:
        yield TokenIds(np.concatenate(held))


def _streams(path: Path, how: TokenReading) -> Iterator[np.ndarray]:
    """Yield ids in the order of the file, and an empty array where the file ends a document."""
    if path.is_dir():
        yield from _mds(path)
    elif path.suffix == ".npy":
        yield from _numpy(path)
    elif path.with_suffix(".idx").is_file():
        yield from _megatron(path)
    else:
        yield from _slices(_plain(path, how))


def _slices(ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), READ_IDS):
        yield np.asarray(ids[start : start + READ_IDS])


def _plain(path: Path, how: TokenReading) -> np.ndarray:
    """Return the ids of a file of nanoGPT, nothing but ids, or of llm.c, which has a header."""
    with open_regular(path) as file:
        start = file.read(12)
    size, offset = path.stat().st_size, 0
    dtype: np.dtype = np.dtype(how.dtype)
    magic, _, count = struct.unpack("<3i", start) if len(start) == 12 else (0, 0, 0)
    if magic in LLM_C:
        dtype, offset = np.dtype(LLM_C[magic]), LLM_C_HEADER
        if size != offset + count * dtype.itemsize:
            raise UserError(f"{path}: is cut short: its header has {count} tokens")
    if size % dtype.itemsize:
        raise UserError(
            f"{path}: {size} bytes are no whole number of {dtype}; expected another --token-dtype"
        )
    ids: np.ndarray = np.memmap(path, dtype, "r", offset) if size > offset else np.empty(0, dtype)
    if not offset and dtype.itemsize == 2 and _is_wide(ids[:READ_IDS]):
        raise UserError(
            f"{path}: every second id of {dtype} is 0, as where ids are wider; expected "
            "--token-dtype uint32"
        )
    return ids


def _is_wide(ids: np.ndarray) -> bool:
    """Return whether the ids look like halves of wider ids below 65,536, the lower half first."""
    return len(ids) >= 32 and bool(ids.any()) and not ids[1::2].any()


def _numpy(path: Path) -> Iterator[np.ndarray]:
    """Yield the ids of a ``.npy``: one stream, or in two dimensions a document for each row."""
    try:
        open_regular(path).close()
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as .npy ({error})") from None
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise UserError(
            f"{path}: holds {ids.dtype} of {ids.ndim} dimensions; expected whole numbers of one "
            "(a stream of tokens) or two (a document a row)"
        )
    for row in ids if ids.ndim == 2 else [ids]:
        yield from _slices(row)
        yield row[:0]


def _megatron(path: Path) -> Iterator[np.ndarray]:
    """Yield the ids of Megatron-LM's .bin, whose .idx says where documents begin."""
    index = path.with_suffix(".idx")
    data = read_regular(index)
    try:
        if data[:9] != MEGATRON:
            raise ValueError("it does not begin as Megatron's do")
        version, code, sequences, documents = struct.unpack_from("<QBQQ", data, 9)
        if version != 1 or code not in MEGATRON_DTYPES:
            raise ValueError(f"version {version}, dtype {code}")
        lengths = np.frombuffer(data, "<i4", sequences, 34)
        ends = np.frombuffer(data, "<i8", documents, 34 + 12 * sequences)
        ids: np.ndarray = np.memmap(path, MEGATRON_DTYPES[code], "r")
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        if starts[-1] != len(ids):
            raise ValueError(f"{path.name} has {len(ids)} tokens where it lists {starts[-1]}")
        if (lengths < 0).any() or (np.diff(ends, prepend=0) < 0).any():
            raise ValueError("its documents do not follow each other")
        bounds = starts[ends].tolist()
    except (ArithmeticError, IndexError, ValueError, struct.error) as error:
        raise UserError(f"{index}: is not the index of {path.name} ({error})") from None
    for start, end in zip([0, *bounds], [*bounds, len(ids)], strict=True):
        yield from _slices(ids[start:end])
        yield ids[:0]


def _mds(folder: Path) -> Iterator[np.ndarray]:
    """Yield the ids of mosaicml-streaming's shards with a column of ids, as llm-foundry's are."""
    streaming = import_streaming()
    shards = read_json(folder / INDEX)["shards"]
    for number, shard in enumerate(shards):
        with _blamed_on(folder, number), tempfile.TemporaryDirectory() as unpacked:
            names = shard["column_names"]
            name = next((n for n in COLUMNS if n in names), None)
            if name is None:
                raise UserError(
                    f"{folder}: has columns {', '.join(names)}; expected ids in "
                    f"{' or '.join(COLUMNS)}"
                )
            where = _unpacked(folder, shard, Path(unpacked))
            reader = streaming.base.format.reader_from_json(str(where), None, shard)
            for i in range(reader.samples):
                ids = reader.get_item(i)[name]
                ids = np.frombuffer(ids, "<i8") if isinstance(ids, bytes) else np.asarray(ids)
                if ids.dtype.kind not in "iu":
                    raise ValueError(f"column {name!r} holds {ids.dtype}")
                yield ids.ravel()


@contextmanager
def _blamed_on(folder: Path, shard: int) -> Iterator[None]:
    """Turn what a damaged shard or an invalid index raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # from streaming, which trusts both, or from its decompressors
        raise UserError(
            f"{folder / INDEX}: shard {shard} cannot be read ({type(error).__name__}: {error}); "
            "expected MDS shards as mosaicml-streaming writes them"
        ) from None


def _unpacked(folder: Path, shard: dict[str, Any], work: Path) -> Path:
    """Return the folder with a shard's raw file: its own, or ``work`` if it is decompressed."""
    name = _inside(folder, shard["raw_data"]["basename"])
    if (folder / name).is_file() or not shard.get("compression"):
        open_regular(folder / name).close()  # names the file if it is missing
        return folder
    packed = read_regular(folder / _inside(folder, shard["zip_data"]["basename"]))
    compression = import_streaming().base.compression
    # In the merged index of several sets, names have folders in them.
    (work / name).parent.mkdir(parents=True, exist_ok=True)
    (work / name).write_bytes(compression.decompress(shard["compression"], packed))
    return work


def _inside(folder: Path, name: str) -> str:
    """Refuse names that lead out of the folder: an index may come from anywhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{folder / INDEX}: {shown(name)} leads out of {folder}; expected a file in it"
        )
    return name


def _files(path: Path) -> list[Path]:
    """Return all files that the ids of ``path`` depend on."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    index = path.with_suffix(".idx")
    return [path, index] if path.suffix == ".bin" and index.is_file() else [path]
