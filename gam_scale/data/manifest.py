"""``manifest.json``: what a prepared set holds, and the check that its files are still that.

A prepared set is a folder with a tokenizer and one folder of MDS shards per split. Its manifest is
written last, so a folder without one is not a prepared set.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from gam_scale.errors import UserError
from gam_scale.files import write_bytes

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.json"
FORMAT = "gam-scale-tokens"
VERSION = 1
READ_BYTES = 1 << 23


@dataclass(frozen=True)
class TokenizerInfo:
    """The sentencepiece model that made the tokens."""

    file: str
    sha256: str
    model_type: str
    vocab_size: int
    bos_id: int


@dataclass(frozen=True)
class ShardInfo:
    """One MDS file: its size and its hash, and how many tokens are in it."""

    file: str
    bytes: int
    tokens: int
    xxh3_64: str


@dataclass(frozen=True)
class SplitInfo:
    """One token stream. ``tokens`` counts the bos of each document, ``bytes`` the text's UTF-8."""

    tokens: int
    documents: int
    bytes: int
    index_sha256: str
    shards: list[ShardInfo]


@dataclass(frozen=True)
class Manifest:
    """A prepared set: token offset o of a split is in its sample ``o // block_tokens``."""

    tokenizer: TokenizerInfo
    dtype: str
    block_tokens: int
    splits: dict[str, SplitInfo]
    source: dict[str, Any]
    code_version: str


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check ``folder/manifest.json``.

    Raises:
        UserError: it is missing, unreadable, cut short, of another format or version, or lacks a
            field; the message names the file and the field.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; expected a folder made by tools/prepare_data.py"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError alike
        raise UserError(
            f"{path}: is cut short or damaged ({error}); prepare the data again"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{path}: is not a manifest; expected an object with "format": "{FORMAT}"')
    if data.get("version") != VERSION:
        raise UserError(
            f"{path}: version {data.get('version')} is unknown; this program reads version "
            f"{VERSION}: prepare the data again"
        )
    return _manifest(data, path)


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write ``folder/manifest.json`` in one step: a reader sees the old file, the new or none."""
    data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_bytes(Path(folder) / MANIFEST_FILE, text.encode())


def verify_files(folder: str | Path, manifest: Manifest, *, hashes: bool) -> None:
    """Check that every file of a prepared set is what the manifest says.

    The tokenizer and the indexes are always hashed; shards by size alone, and by content where
    ``hashes`` is set (1-2 GB/s).

    Raises:
        UserError: naming the first file that is missing, truncated or changed.
    """
    folder = Path(folder)
    _verify_sha256(folder / manifest.tokenizer.file, manifest.tokenizer.sha256)
    for name, split in manifest.splits.items():
        _verify_sha256(folder / name / INDEX_FILE, split.index_sha256)
        for shard in split.shards:
            verify_shard(folder / name / shard.file, shard, hashes)


def verify_shard(path: str | Path, info: ShardInfo, hashes: bool) -> None:
    """Check one shard's size, and its content where ``hashes`` is set.

    Raises:
        UserError: naming the file and how it differs.
    """
    size = _size(path)
    if size != info.bytes:
        fault = "is truncated" if size < info.bytes else "has grown"
        raise UserError(
            f"{path}: {fault}: {size} bytes where the manifest has {info.bytes}; copy it again "
            "from its source or prepare the data again"
        )
    if hashes and _digest(path, xxhash.xxh3_64()) != info.xxh3_64:
        raise _changed(path)


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    return _digest(path, hashlib.sha256())


def _verify_sha256(path: Path, expected: str) -> None:
    _size(path)
    if sha256_of(path) != expected:
        raise _changed(path)


def _size(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        raise UserError(
            f"{path}: is missing, though the manifest lists it; copy it again from its source or "
            "prepare the data again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _digest(path: str | Path, hasher: Any) -> str:
    try:
        with open(path, "rb") as file:
            while data := file.read(READ_BYTES):
                hasher.update(data)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return hasher.hexdigest()


def _changed(path: str | Path) -> UserError:
    return UserError(
        f"{path}: its content has changed since it was prepared; copy it again from its source or "
        "prepare the data again"
    )


def _manifest(data: dict[str, Any], path: Path) -> Manifest:
    fields = _fields(Manifest, data, str(path))
    fields["tokenizer"] = _record(TokenizerInfo, fields["tokenizer"], f"{path}: tokenizer")
    splits = {}
    for name, split in fields["splits"].items():
        where = f"{path}: splits.{name}"
        values = _fields(SplitInfo, split, where)
        values["shards"] = [
            _record(ShardInfo, shard, f"{where}.shards[{i}]")
            for i, shard in enumerate(values["shards"])
        ]
        splits[_plain_name(name, where)] = SplitInfo(**values)
        counted = sum(shard.tokens for shard in splits[name].shards)
        if counted != splits[name].tokens:
            raise UserError(
                f"{where} has {splits[name].tokens} tokens but its shards hold {counted}"
            )
    fields["splits"] = splits
    if fields["dtype"] not in ("uint16", "uint32"):
        raise UserError(f"{path}: dtype is {fields['dtype']!r}; expected uint16 or uint32")
    if fields["block_tokens"] < 1:
        raise UserError(f"{path}: block_tokens is {fields['block_tokens']}; expected at least 1")
    return Manifest(**fields)


def _record(cls: type, data: Any, where: str) -> Any:
    fields = _fields(cls, data, where)
    _plain_name(fields["file"], f"{where}.file")
    return cls(**fields)


def _fields(cls: type, data: Any, where: str) -> dict[str, Any]:
    """The fields of dataclass ``cls`` from parsed JSON, each present and of the right JSON type."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is not an object; prepare the data again")
    fields = {}
    for field in dataclasses.fields(cls):
        value = data.get(field.name)
        kind = getattr(field.type, "__origin__", field.type)  # dict[str, X] -> dict
        expected = dict if dataclasses.is_dataclass(kind) else kind
        if type(value) is not expected or (expected is int and value < 0):
            raise UserError(
                f"{where}: {field.name} is {json.dumps(value)[:60]}; expected {expected.__name__}"
            )
        fields[field.name] = value
    return fields


def _plain_name(name: str, where: str) -> str:
    """Refuse names that could lead out of the folder: a manifest may come from anywhere."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UserError(f"{where}: {name!r} is not a plain file name")
    return name
