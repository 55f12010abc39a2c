"""Record, in a first pass over a part, what is needed to judge the documents of all parts."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from gam_scale.data.documents import Document, size_of, utf8_size
from gam_scale.data.filters import DIGEST_BYTES, REPEATED, REPETITIVE, SHORT, digest
from gam_scale.data.prepare import PrepareSpec
from gam_scale.data.tokenizer_training import sample_pieces
from gam_scale.preparation.saved import load_arrays, save_arrays

REASONS = (None, SHORT, REPETITIVE, REPEATED)
"""Why a document is left out; arrays hold indices into this tuple, and at 0 a document stays."""


@dataclass(frozen=True)
class Survey:
    """Arrays over the n documents of a part, left out ones included.

    Attributes:
        reasons: (n,) uint8, indices of :data:`REASONS`; repeated ones are not known yet.
        sizes: (n,) uint64, bytes of text.
        digests: (m, 2) uint64, for the m documents that stay; (0, 2) without deduplication.
        counts: (n,) uint32, how many stretches of each document that stays a tokenizer's sample may
            draw from; 0 if no tokenizer is trained on it.
        stretches: (sum of counts,) uint16, the bytes of each such stretch.
    """

    reasons: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray
    counts: np.ndarray
    stretches: np.ndarray

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        save_arrays(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Survey":
        """What :meth:`save` wrote."""
        return cls(**load_arrays(path))

    def __len__(self) -> int:
        return len(self.reasons)


def survey(documents: Iterable[Document], spec: PrepareSpec) -> Survey:
    """Record the documents of a part; only the record stays in memory."""
    filters, trains = spec.filters, spec.tokenizer is None
    reasons, sizes, counts, pieces = array("B"), array("Q"), array("I"), array("H")
    digests = bytearray()
    for document in islice(documents, spec.max_documents):
        reason = REASONS.index(filters.reason_to_leave_out(document))
        reasons.append(reason)
        sizes.append(size_of(document))
        before = len(pieces)
        if not reason:
            if filters.deduplicate:
                digests += digest(document)
            if trains and isinstance(document, str):
                pieces.extend(utf8_size(piece) for piece in sample_pieces(document))
        counts.append(len(pieces) - before)
    assert DIGEST_BYTES == 16
    return Survey(
        np.array(reasons, np.uint8),
        np.array(sizes, np.uint64),
        np.frombuffer(bytes(digests), np.uint64).reshape(-1, 2),
        np.array(counts, np.uint32),
        np.array(pieces, np.uint16),
    )


def staying(documents: Iterable[Document], reasons: np.ndarray | None) -> Iterator[Document]:
    """Return the documents of a part that stay; all of them if ``reasons`` is None."""
    if reasons is None:
        return iter(documents)
    return (d for d, reason in zip(documents, reasons.tolist(), strict=False) if not reason)
