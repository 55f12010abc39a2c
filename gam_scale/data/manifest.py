"""``manifest.json``, which says what a prepared set holds, and checks of the files against it.

A prepared set is a folder with a tokenizer and one folder of MDS shards per split. Its manifest is
written last, so a folder without one is not a prepared set.
"""

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xxhash

from gam_scale import pulse
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.files import open_regular, write_bytes
from gam_scale.strict import from_dict, read_json, shown

MANIFEST_FILE = "manifest.json"
INDEX_FILE = "index.json"
FORMAT = "gam-scale-tokens"
VERSION = 1
CHECKSUM = "checksum"  # the key of the manifest's own checksum
TOKENS, ANSWERS = "tokens", "answers"  # columns of the samples
READ_BYTES = 1 << 23


def _at_least(bound: int) -> dict[str, Any]:
    return {"bounds": {"at_least": bound}}


@dataclass(frozen=True)
class TokenizerInfo:
    """The tokenizer that made the tokens.

    ``eos_id``, if not None, closes every document. ``exact``: decoding returns the same text.
    """

    file: str
    sha256: str
    model_type: str
    vocab_size: int = field(metadata=_at_least(2))
    bos_id: int = field(metadata=_at_least(0))
    eos_id: int | None = None
    exact: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer, file: str) -> "TokenizerInfo":
        """Describe ``tokenizer``, which the set keeps in ``file``."""
        return cls(
            file=file,
            sha256=tokenizer.sha256,
            model_type=tokenizer.model_type,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            exact=tokenizer.exact,
        )


@dataclass(frozen=True)
class ShardInfo:
    """One MDS file: its name, its size, the number of tokens in it, and its hash."""

    file: str
    bytes: int = field(metadata=_at_least(0))
    tokens: int = field(metadata=_at_least(1))
    xxh3_64: str


@dataclass(frozen=True)
class AnswersInfo:
    """How many tokens of a split carry loss, and the UTF-8 bytes of their text.

    ``padding`` is the number of tokens that fill sequences up.
    """

    tokens: int = field(metadata=_at_least(0))
    bytes: int = field(metadata=_at_least(0))
    padding: int = field(metadata=_at_least(0))


@dataclass(frozen=True)
class PairsInfo:
    """How the conversations of a set became text, and the length that they are packed to.

    ``chat_template`` is Jinja. A split consists of stretches of ``seq_len`` tokens, and each
    conversation stands whole in one of them. Beside its tokens, a sample has a column
    :data:`ANSWERS`: one bit for each token that says whether the token carries loss, starting at
    the highest bit of each byte.
    """

    seq_len: int = field(metadata=_at_least(1))
    chat_template: str


@dataclass(frozen=True)
class SplitInfo:
    """The token stream of one split.

    ``tokens`` includes the bos of each document; ``bytes`` is the text's size in UTF-8. ``answers``
    is None if every token carries loss. ``left_out`` counts documents by the filter that left them
    out. The training sources are filtered before some text is held out, so their counts are all in
    the training split.
    """

    tokens: int = field(metadata=_at_least(0))
    documents: int = field(metadata=_at_least(0))
    bytes: int = field(metadata=_at_least(0))
    index_sha256: str
    shards: list[ShardInfo]
    left_out: dict[str, int] = field(default_factory=dict)
    answers: AnswersInfo | None = None

    @property
    def learned(self) -> tuple[int, int]:
        """The number of tokens that carry loss, and the UTF-8 bytes of their text."""
        of = self if self.answers is None else self.answers
        return of.tokens, of.bytes


@dataclass(frozen=True)
class Manifest:
    """The description of a prepared set.

    Token ``o`` of a split is in the split's sample ``o // block_tokens``. ``digests_sha256`` is the
    SHA-256 of the file of digests (:mod:`gam_scale.data.digests`) of a deduplicated set.
    """

    tokenizer: TokenizerInfo
    dtype: Literal["uint16", "uint32"]
    block_tokens: int = field(metadata=_at_least(1))
    splits: dict[str, SplitInfo]
    source: dict[str, Any]
    code_version: str
    pairs: PairsInfo | None = None
    digests_sha256: str | None = None


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check ``folder/manifest.json``.

    The manifest is checked against its own checksum, which manifests of earlier versions lack. Its
    numbers are checked against each other, and later against the files (:func:`verify_files`, the
    shards' reader).

    Raises:
        UserError: the manifest is missing, unreadable, cut short, changed, of another format or
            version, or lacks a field; the message names the file and the field.
    """
    path = Path(folder) / MANIFEST_FILE
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file; expected a folder made by tools/prepare_data.py")
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f'{path}: is not a manifest; expected an object with "format": "{FORMAT}"')
    if data.get("version") != VERSION:
        raise UserError(
            f"{path}: version {shown(data.get('version'))} is unknown; this program reads version "
            f"{VERSION}: prepare the data again"
        )
    if CHECKSUM in data and data.pop(CHECKSUM) != _checksum(data):
        raise _changed(path)
    fields = {key: value for key, value in data.items() if key not in ("format", "version")}
    try:
        manifest = from_dict(Manifest, fields)
        _check(manifest)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return manifest


def read_validated(folder: str | Path) -> Manifest:
    """Return the manifest of a set for comparisons, which go by its validation loss.

    Raises:
        UserError: see :func:`read_manifest`; or the set has no validation split.
    """
    manifest = read_manifest(folder)
    if "valid" not in manifest.splits:
        raise UserError(
            f"{folder} has no valid split; expected one made by tools/prepare_data.py --valid"
        )
    return manifest


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write the manifest in one step: a reader sees the old file, the new one or none."""
    data = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(manifest)}
    data[CHECKSUM] = _checksum(data)
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_bytes(Path(folder) / MANIFEST_FILE, text.encode())


def verify_files(folder: str | Path, manifest: Manifest, *, hashes: bool) -> None:
    """Check the tokenizer, the indexes and the shards of a prepared set against its manifest.

    The tokenizer and the indexes are always hashed. Shards are checked by size, and by hash too
    (1-2 GB/s) if ``hashes`` is set.

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
    """Check one shard's size and, if ``hashes`` is set, its content.

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
    """Return the hex SHA-256 of a file."""
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
    with open_regular(path) as file:
        while data := file.read(READ_BYTES):
            hasher.update(data)
            pulse.beat()
    return hasher.hexdigest()


def _changed(path: str | Path) -> UserError:
    return UserError(
        f"{path}: its content has changed since it was prepared; copy it again from its source or "
        "prepare the data again"
    )


def _checksum(data: dict[str, Any]) -> str:
    """Return the hex SHA-256 of a manifest's content, whatever its layout in the file."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check(manifest: Manifest) -> None:
    """Check that a manifest's numbers agree with each other."""
    tokenizer = manifest.tokenizer
    _plain_name(tokenizer.file, "tokenizer.file")
    for key, token in (("bos_id", tokenizer.bos_id), ("eos_id", tokenizer.eos_id)):
        if token is not None and not 0 <= token < tokenizer.vocab_size:
            raise UserError(
                f"tokenizer.{key} is {token}; expected an id below {tokenizer.vocab_size}"
            )
    for name, split in manifest.splits.items():
        where = f"splits.{_plain_name(name, 'splits')}"
        for i, shard in enumerate(split.shards):
            _plain_name(shard.file, f"{where}.shards[{i}].file")
        counted = sum(shard.tokens for shard in split.shards)
        if counted != split.tokens:
            raise UserError(f"{where} has {split.tokens} tokens but its shards hold {counted}")
        if (split.answers is None) != (manifest.pairs is None):
            raise UserError(f"{where}.answers and pairs do not go together")
        if split.answers is not None:
            _check_answers(split, split.answers, where)
            continue
        # With an exact tokenizer, every token but bos and eos stands for a byte or more.
        least = split.tokens - split.documents * (1 if tokenizer.eos_id is None else 2)
        most = split.bytes if tokenizer.exact else math.inf
        if not 0 <= least <= most or (split.tokens and not split.bytes):
            raise UserError(
                f"{where} has {split.tokens} tokens in {split.documents} documents of "
                f"{split.bytes} bytes, which cannot be; prepare the data again"
            )


def _check_answers(split: SplitInfo, answers: AnswersInfo, where: str) -> None:
    if answers.tokens + answers.padding > split.tokens or answers.bytes > split.bytes:
        raise UserError(
            f"{where} has {split.tokens} tokens of {split.bytes} bytes, with answers of "
            f"{answers.tokens} and {answers.bytes} and {answers.padding} of padding, which cannot "
            "be; prepare the data again"
        )


def _plain_name(name: str, where: str) -> str:
    """Refuse names that could lead out of the folder: a manifest may come from anywhere."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise UserError(f"{where}: {shown(name)} is not a plain file name")
    return name
