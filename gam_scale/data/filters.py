"""Filters that leave documents of a corpus out of a prepared set and count them by reason."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gam_scale.data.digests import digests_of, read_digests
from gam_scale.data.documents import Document

REPEATED, SHORT, REPETITIVE = "repeated", "short", "repetitive"
PHRASE_WORDS = 5
DIGEST_BYTES = 16  # the chance that any two of 2^50 documents share a digest is 1 in 5e8


@dataclass(frozen=True)
class Filters:
    """Which documents of the sources are left out; by default, none.

    Attributes:
        deduplicate: leave out documents that are identical, to the last character, to an earlier
            one of any split. This takes about 116 bytes of memory for each document, and 100 for
            each document of ``against``.
        min_chars: leave out texts with fewer characters.
        max_repetition: leave out texts whose :func:`repetition` is larger.
        against: deduplicated prepared sets, whose documents ``deduplicate`` leaves out too.

    ``min_chars`` and ``max_repetition`` apply to texts alone, not to ids or conversations.
    """

    deduplicate: bool = False
    min_chars: int = 0
    max_repetition: float | None = None
    against: tuple[Path, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return a JSON-ready account of the filters that are on."""
        settings: dict[str, Any] = {}
        if self.deduplicate:
            settings["deduplicate"] = True
        if self.min_chars:
            settings["min_chars"] = self.min_chars
        if self.max_repetition is not None:
            settings["max_repetition"] = self.max_repetition
        if self.against:
            settings["deduplicate_against"] = digests_of(self.against)
        return settings

    def reason_to_leave_out(self, document: Document) -> str | None:
        """Return why a document is left out, judged by itself alone; None if it stays."""
        if isinstance(document, str):
            if len(document) < self.min_chars:
                return SHORT
            if self.max_repetition is not None and repetition(document) > self.max_repetition:
                return REPETITIVE
        return None


class Sieve:
    """One pass of :class:`Filters` over the documents of all splits, in order.

    Attributes:
        left_out: number of documents left out so far, by split and reason.
        digests: joined digests of the documents kept so far; empty without deduplication.
    """

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        known = read_digests(filters.against).tobytes()
        self._seen = {known[i : i + DIGEST_BYTES] for i in range(0, len(known), DIGEST_BYTES)}
        self.digests = bytearray()
        self.left_out: dict[str, Counter[str]] = {}

    def kept(self, split: str, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield the documents that stay; count the others."""
        counts = self.left_out.setdefault(split, Counter())
        for document in documents:
            if reason := self._reason_to_leave_out(document):
                counts[reason] += 1
            else:
                yield document

    def _reason_to_leave_out(self, document: Document) -> str | None:
        if (reason := self._filters.reason_to_leave_out(document)) or not self._filters.deduplicate:
            return reason
        known = digest(document)
        if known in self._seen:
            return REPEATED
        self._seen.add(known)
        self.digests += known
        return None


def repetition(text: str) -> float:
    """Return the share of a text's words that repeat a five-word phrase from earlier in the text.

    The count follows the duplicate n-gram filter of arXiv 2112.11446 (which counts characters and
    allows up to 15% for five words). Words are separated by spaces and line ends.
    """
    words = text.split()
    seen: set[int] = set()
    repeated, counted = 0, 0  # ``repeated`` accounts for all words before ``counted``
    for start in range(len(words) - PHRASE_WORDS + 1):
        end = start + PHRASE_WORDS
        phrase = hash(tuple(words[start:end]))
        if phrase in seen:
            repeated += end - max(start, counted)
            counted = end
        else:
            seen.add(phrase)
    return repeated / max(1, len(words))


def digest(document: Document) -> bytes:
    """Return a hash that equal documents share and, in all likelihood, no others do."""
    if not isinstance(document, str):
        return document.digest(DIGEST_BYTES)
    return hashlib.blake2b(document.encode(), digest_size=DIGEST_BYTES).digest()
