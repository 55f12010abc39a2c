"""A document on its way into a prepared set: a text, somebody's ids of one, a conversation."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gam_scale.data.conversation import Conversation

PIECE_CHARS = 1 << 16
PADDING = 0  # the token where there is none; its target is always IGNORE
BYTES_A_TOKEN = 4  # about, where only a share of a corpus is asked for


@dataclass(frozen=True)
class TokenIds:
    """A document's ids, (n,) of an integer dtype, without what opens and closes it."""

    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def stretches(self, count: int) -> Iterator["TokenIds"]:
        """Parts of at most ``count`` ids."""
        return (TokenIds(self.ids[i : i + count]) for i in range(0, len(self.ids), count))

    def divide(self, tail_bytes: int) -> tuple["TokenIds", "TokenIds"] | None:
        """Head and a tail of about so many bytes of text; None of a single id."""
        if len(self.ids) < 2:
            return None
        at = min(max(len(self.ids) - tail_bytes // BYTES_A_TOKEN, 1), len(self.ids) - 1)
        return TokenIds(self.ids[:at]), TokenIds(self.ids[at:])

    def digest(self, size: int) -> bytes:
        """A hash of the ids, whatever holds them."""
        return hashlib.blake2b(self.ids.astype("<u4").tobytes(), digest_size=size).digest()


Document = str | TokenIds | Conversation


def padding_id(bos_id: int) -> int:
    """The token where there is none: one that opens no document."""
    return PADDING if bos_id != PADDING else PADDING + 1


def size_of(document: Document) -> int:
    """Bytes of text, estimated where there are ids."""
    if isinstance(document, TokenIds):
        return BYTES_A_TOKEN * len(document.ids)
    if isinstance(document, Conversation):
        return document.size
    return utf8_size(document)


def utf8_size(text: str) -> int:
    """Bytes of ``text`` in UTF-8, without a second copy of it."""
    if text.isascii():
        return len(text)
    starts = range(0, len(text), PIECE_CHARS)
    return sum(len(text[start : start + PIECE_CHARS].encode()) for start in starts)


def account(files: Sequence[Path]) -> dict[str, Any]:
    """A JSON-ready account of what files hold, without reading them: equal while none changed."""
    digest, size = hashlib.sha256(), 0
    for path in files:
        stat = path.stat()
        digest.update(os.fsencode(path.name))  # of any bytes
        digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        size += stat.st_size
    return {
        "files": len(files),
        "bytes": size,
        "sha256_of_names_sizes_times": digest.hexdigest(),
    }
