"""Which documents of a corpus are left out when it is prepared, and how many of each kind."""

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
DIGEST_BYTES = 16  # two of 2^50 documents share one with a probability of 1 in 5e8


@dataclass(frozen=True)
class Filters:
    """What of the sources is left out; nothing by default.

    Attributes:
        deduplicate: leave out documents that are, to the last character, an earlier one, of
            whichever split. That takes about 116 bytes of memory a document, and 100
            for each of those of ``against``.
        min_chars: leave out texts with fewer characters.
        max_repetition: leave out texts of which a larger share of :func:`repetition`.
        against: prepared sets, deduplicated ones: ``deduplicate`` leaves out their documents too.

    The lengths and shares judge texts alone, not documents that come as ids, nor conversations.
    """

    deduplicate: bool = False
    min_chars: int = 0
    max_repetition: float | None = None
    against: tuple[Path, ...] = ()

    def describe(self) -> dict[str, Any]:
        """A JSON-ready account of those that are asked for."""
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

    def fault(self, document: Document) -> str | None:
        """Why a document is left out, whatever else the corpus holds; None where it stays."""
        if isinstance(document, str):
            if len(document) < self.min_chars:
                return SHORT
            if self.max_repetition is not None and repetition(document) > self.max_repetition:
                return REPETITIVE
        return None


class Sieve:
    """One pass of :class:`Filters` over the documents of all splits, in their order.

    Attributes:
        left_out: documents by split and by why they were left out.
        digests: of the documents that stayed so far, where they are deduplicated.
    """

    def __init__(self, filters: Filters) -> None:
        self._filters = filters
        known = read_digests(filters.against).tobytes()
        self._seen = {known[i : i + DIGEST_BYTES] for i in range(0, len(known), DIGEST_BYTES)}
        self.digests = bytearray()
        self.left_out: dict[str, Counter[str]] = {}

    def kept(self, split: str, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that stay."""
        counts = self.left_out.setdefault(split, Counter())
        for document in documents:
            if reason := self._fault(document):
                counts[reason] += 1
            else:
                yield document

    def _fault(self, document: Document) -> str | None:
        if (reason := self._filters.fault(document)) or not self._filters.deduplicate:
            return reason
        known = digest(document)
        if known in self._seen:
            return REPEATED
        self._seen.add(known)
        self.digests += known
        return None


def repetition(text: str) -> float:
    """The share of a text's words that stand in a phrase of five words that came before in it.

    As the repetition filter of arXiv 2112.11446 counts duplicate n-grams (there characters of
    those, up to 15% for five words). Words are what spaces and line ends part.
    """
    words = text.split()
    seen: set[int] = set()
    repeated, counted = 0, 0  # words up to ``counted`` are in ``repeated`` or are not
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
    """What equal documents have in common and, in all likelihood, no others do."""
    if not isinstance(document, str):
        return document.digest(DIGEST_BYTES)
    return hashlib.blake2b(document.encode(), digest_size=DIGEST_BYTES).digest()
