"""Which text of a corpus is held out for validation, where it has no validation text of its own."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

TOLERANCE = 0.2  # of the asked share: how far whole documents may be from it
PIECE_CHARS = 1 << 16

_WORD_START = re.compile(r"\n|(?= )")


@dataclass(frozen=True)
class HoldOut:
    """Some documents, by index, and perhaps the tail of one more."""

    documents: frozenset[int] = frozenset()
    cut: int | None = None
    tail_bytes: int = 0  # of document ``cut``

    def split(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Every (split, text) in the corpus's order; head and tail of the cut one separately."""
        for index, text in enumerate(texts):
            at = len(text) if index != self.cut else tail_start(text, self.tail_bytes)
            if 0 < at < len(text):
                yield "train", text[:at]
                yield "valid", text[at:]
            else:
                yield "valid" if index in self.documents else "train", text


def choose(sizes: Sequence[int], fraction: float) -> HoldOut:
    """Hold ``fraction`` of a corpus out, given its documents' sizes in bytes.

    Documents come in the order of a hash of their index, the first one before all. Those whose
    hash is below ``fraction`` are held out: the same ones however many follow. Where their text is
    not about as much as was asked (few documents, or long ones), as many are as fill the share,
    and the one that overfills it gives its tail alone.
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
    """The documents of the lowest hashes, the first one before all: enough to hold ``n_bytes``."""
    bound = 2 * n_bytes / max(1, sum(sizes))
    while True:
        # Of a large corpus only these few are ever sorted.
        chosen = [i for i in range(len(sizes)) if i == 0 or _unit_hash(i) < bound]
        if len(chosen) == len(sizes) or sum(sizes[i] for i in chosen) > n_bytes:
            return sorted(chosen, key=lambda i: (i > 0, _unit_hash(i)))
        bound *= 2


def tail_start(text: str, n_bytes: int) -> int:
    """Where the last ``n_bytes`` of ``text`` begin, or the first word or line in them does.

    Neither the head nor the tail is empty, if ``text`` has two characters.
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


def utf8_size(text: str) -> int:
    """Bytes of ``text`` in UTF-8, without a second copy of it."""
    if text.isascii():
        return len(text)
    starts = range(0, len(text), PIECE_CHARS)
    return sum(len(text[start : start + PIECE_CHARS].encode()) for start in starts)


def _unit_hash(index: int) -> float:
    """A number in [0, 1) for a document's index."""
    digest = hashlib.blake2b(index.to_bytes(8, "little"), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
