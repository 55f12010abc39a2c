"""Choose the text to hold out for validation from a corpus without validation text of its own."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gam_scale.data.conversation import Conversation
from gam_scale.data.documents import PIECE_CHARS, Document, TokenIds, utf8_size

TOLERANCE = 0.2  # how far whole documents may be from the asked share, relative to it

_WORD_START = re.compile(r"\n|(?= )")


@dataclass(frozen=True)
class HoldOut:
    """The held-out documents, by index, and perhaps the tail of one more document."""

    documents: frozenset[int] = frozenset()
    cut: int | None = None
    tail_bytes: int = 0  # bytes held out of document ``cut``

    def split(self, documents: Iterable[Document]) -> Iterator[tuple[str, Document]]:
        """Yield every (split, document) in order; head and tail of the cut document separately.

        A conversation is held out whole instead of being cut.
        """
        for index, document in enumerate(documents):
            parts = divide(document, self.tail_bytes) if index == self.cut else None
            if parts:
                yield "train", parts[0]
                yield "valid", parts[1]
            else:
                whole = index == self.cut and isinstance(document, Conversation)
                yield "valid" if whole or index in self.documents else "train", document


def choose(sizes: Sequence[int], fraction: float) -> HoldOut:
    """Choose which ``fraction`` of a corpus to hold out, given its documents' sizes in bytes.

    The first document, and all whose index hashes below ``fraction``, are held out: the same ones
    however many documents follow. If their text misses the asked share by more than
    :data:`TOLERANCE` (documents are few, or long), documents are instead taken in the order of
    their hashes, the first document before all, until the share is full; the document that would
    overfill it gives only its tail.
    """
    asked = fraction * sum(sizes)
    below = [i for i in range(len(sizes)) if i == 0 or _unit_hash(i) < fraction]
    held = sum(sizes[i] for i in below)
    if len(below) < len(sizes) and abs(held - asked) <= TOLERANCE * asked:
        return HoldOut(frozenset(below))
    whole: set[int] = set()
    left = max(1, round(asked))
    for i in _in_hash_order(sizes, left):
        if sizes[i] > left:
            return HoldOut(frozenset(whole), i, left)
        whole.add(i)
        left -= sizes[i]
        if not left:
            break
    return HoldOut(frozenset(whole))


def _in_hash_order(sizes: Sequence[int], n_bytes: int) -> list[int]:
    """Return enough documents for ``n_bytes``: the first one, then those of the lowest hashes."""
    bound = 2 * n_bytes / max(1, sum(sizes))
    while True:
        # Of a large corpus, only these few documents are ever sorted.
        chosen = [i for i in range(len(sizes)) if i == 0 or _unit_hash(i) < bound]
        if len(chosen) == len(sizes) or sum(sizes[i] for i in chosen) > n_bytes:
            return sorted(chosen, key=lambda i: (i > 0, _unit_hash(i)))
        bound *= 2


def divide(document: Document, tail_bytes: int) -> tuple[Document, Document] | None:
    """Return a document's head and its tail of about ``tail_bytes``; None if it cannot be cut."""
    if isinstance(document, TokenIds):
        return document.divide(tail_bytes)
    if not isinstance(document, str):
        return None  # a conversation stays whole
    at = tail_start(document, tail_bytes)
    return (document[:at], document[at:]) if 0 < at < len(document) else None


def tail_start(text: str, n_bytes: int) -> int:
    """Return where the last ``n_bytes`` of ``text`` begin, or a word or line shortly after that.

    If ``text`` has at least two characters, neither the head nor the tail is empty.
    """
    start = len(text)
    while start and n_bytes > 0:
        step = min(start, PIECE_CHARS)
        piece = text[start - step : start]
        size = utf8_size(piece)
        if size > n_bytes:
            step = len(piece.encode()[-n_bytes:].decode(errors="ignore"))
        start -= step
        n_bytes = n_bytes - size
    start = min(max(start, 1), len(text) - 1)
    word = _WORD_START.search(text, start, start + (len(text) - start) // 10)
    return word.end() if word else start


def _unit_hash(index: int) -> float:
    """Hash a document's index to a number in [0, 1)."""
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
