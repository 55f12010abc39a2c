"""Documents on their way into a prepared set: texts, token ids or conversations."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gam_scale.data.conversation import Conversation

PIECE_CHARS = 1 << 16
PADDING = 0  # fills places without a token; the target there is always IGNORE
BYTES_A_TOKEN = 4  # a rough figure, used only to measure out a share of a corpus


@dataclass(frozen=True)
class TokenIds:
    """A document as token ids, (n,) of an integer dtype, without its bos and eos."""

    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def stretches(self, count: int) -> Iterator["TokenIds"]:
        """Yield the ids in parts of at most ``count``."""
        return (TokenIds(self.ids[i : i + count]) for i in range(0, len(self.ids), count))

    def divide(self, tail_bytes: int) -> tuple["TokenIds", "TokenIds"] | None:
        """Return a head and a tail of about ``tail_bytes`` of text; None below two ids."""
        if len(self.ids) < 2:
            return None
        at = min(max(len(self.ids) - tail_bytes // BYTES_A_TOKEN, 1), len(self.ids) - 1)
        return TokenIds(self.ids[:at]), TokenIds(self.ids[at:])

    def digest(self, size: int) -> bytes:
        """Return a hash of the ids, independent of their dtype."""
        return hashlib.blake2b(self.ids.astype("<u4").tobytes(), digest_size=size).digest()


Document = str | TokenIds | Conversation


def padding_id(bos_id: int) -> int:
    """Return the id that fills places without a token: one that opens no document."""
    return PADDING if bos_id != PADDING else PADDING + 1


def size_of(document: Document) -> int:
    """Return a document's UTF-8 bytes of text, estimated if it consists of ids."""
    if isinstance(document, TokenIds):
        return BYTES_A_TOKEN * len(document.ids)
    if isinstance(document, Conversation):
        return document.size
    return utf8_size(document)


def utf8_size(text: str) -> int:
    """Return the number of UTF-8 bytes of ``text`` without making a second copy of it."""
    if text.isascii():
        return len(text)
    starts = range(0, len(text), PIECE_CHARS)
    return sum(len(text[start : start + PIECE_CHARS].encode()) for start in starts)


def files_fingerprint(files: Sequence[Path]) -> dict[str, Any]:
    """Describe files by names, sizes and times, JSON-ready, to notice changes without reading."""
    digest, size = hashlib.sha256(), 0
    for path in files:
        stat = path.stat()
        digest.update(os.fsencode(path.name))  # may hold any bytes
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        size += stat.st_size
    return {
        "files": len(files),
        "bytes": size,
        "sha256_of_names_sizes_times": digest.hexdigest(),
    }
