"""Judge which documents of a corpus stay and which are held out, over all of its parts at once.

The verdicts are those of one process that reads all documents in order: the first of equal
documents stays, whichever part it is in, and documents are held out by their number in the whole
corpus.
"""

import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gam_scale.data.digests import read_digests
from gam_scale.data.documents import Document, utf8_size
from gam_scale.data.filters import REPEATED
from gam_scale.data.holdout import HoldOut, choose, divide
from gam_scale.data.prepare import PrepareSpec
from gam_scale.data.tokenizer_training import Draw, sample_pieces
from gam_scale.preparation.parts import Part
from gam_scale.preparation.saved import load_arrays, save_arrays, unfinished
from gam_scale.preparation.survey import REASONS, Survey, staying

DIGESTS_AT_ONCE = 1 << 25  # compared in memory, where each takes about 80 bytes


@dataclass(frozen=True)
class Verdict:
    """What becomes of the documents of a part.

    Attributes:
        reasons: (n,) uint8, indices of REASONS for the first n documents; only these n are read.
        held: which documents are held out for validation, as indices among those that stay.
        cut: (2,) such an index of the document that is divided, or -1, and the bytes of its tail.
        sample: which stretches of the part's training text train the tokenizer, by number.
    """

    reasons: np.ndarray
    held: np.ndarray
    cut: np.ndarray
    sample: np.ndarray

    @property
    def hold_out(self) -> HoldOut:
        """What is held out of the documents that stay."""
        cut, tail = self.cut.tolist()
        return HoldOut(frozenset(self.held.tolist()), None if cut < 0 else cut, tail)

    def save(self, path: Path) -> None:
        """Write the file in one step."""
        save_arrays(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Verdict":
        """What :meth:`save` wrote."""
        return cls(**load_arrays(path))


def judge(
    spec: PrepareSpec, parts: Sequence[Part], surveys: Path, verdicts: Path, digests: Path
) -> dict[str, dict[str, int]]:
    """Write a verdict for each part, from the surveys of all parts.

    Args:
        spec: what is prepared.
        parts: the parts of all sources.
        surveys: the folder with the survey ``NUMBER.npz`` of each part.
        verdicts: the folder to write the verdicts to, with the same names.
        digests: the file to write the kept documents' digests to, if they are deduplicated.

    Returns:
        The number of documents left out, by split and reason.

    Memory: 10 bytes a document, and 3 GB at most to compare digests.
    """
    paths = [surveys / f"{part.number:05d}.npz" for part in parts]
    reasons = _within_limit(spec, parts, paths)
    if spec.filters.deduplicate:
        _mark_repeated(paths, reasons, read_digests(spec.filters.against))
        _keep_digests(paths, reasons, digests)
    hold_out = HoldOut()
    if not spec.valid and spec.valid_fraction:
        sizes = array("Q")
        for part, path, its in zip(parts, paths, reasons, strict=True):
            if part.split == "train":
                read = load_arrays(path, "sizes")["sizes"]
                sizes.frombytes(read[: len(its)][its == 0].tobytes())
        hold_out = choose(sizes, spec.valid_fraction)
    held = np.array(sorted(hold_out.documents), np.int64)
    draw = Draw() if spec.tokenizer is None else None
    first, starts = 0, [0]
    held_of: list[tuple[np.ndarray, np.ndarray]] = []
    for part, path, its in zip(parts, paths, reasons, strict=True):
        stay = int((its == 0).sum()) if part.split == "train" else 0
        inside = held[(held >= first) & (held < first + stay)] - first
        cut_at = -1 if hold_out.cut is None else hold_out.cut - first
        is_cut = 0 <= cut_at < stay
        cut = np.array([cut_at, hold_out.tail_bytes] if is_cut else [-1, 0], np.int64)
        held_of.append((inside, cut))
        first += stay
        count = 0
        if draw is not None and part.split == "train":
            for size in _training_stretches(part, Survey.load(path), its, inside, cut):
                draw.add(size)
                count += 1
        starts.append(starts[-1] + count)
    sample = np.array(draw.kept() if draw is not None else [], np.int64)
    bounds = np.searchsorted(sample, starts)
    for i, (part, its, (inside, cut)) in enumerate(zip(parts, reasons, held_of, strict=True)):
        own = sample[bounds[i] : bounds[i + 1]] - starts[i]
        Verdict(its, inside, cut, own).save(verdicts / f"{part.number:05d}.npz")
    return _counted(parts, reasons)


def _within_limit(
    spec: PrepareSpec, parts: Sequence[Part], paths: Sequence[Path]
) -> list[np.ndarray]:
    """Return the reasons of each part, cut off where its split reaches ``max_documents``."""
    seen: Counter[str] = Counter()
    reasons = []
    for part, path in zip(parts, paths, strict=True):
        its = load_arrays(path, "reasons")["reasons"]
        if spec.max_documents is not None:
            its = its[: spec.max_documents - seen[part.split]]
        seen[part.split] += len(its)
        reasons.append(its)
    return reasons


def _mark_repeated(paths: Sequence[Path], reasons: list[np.ndarray], known: np.ndarray) -> None:
    """Mark in ``reasons`` the documents that repeat an earlier or a ``known`` document.

    The digests are compared group by group, to bound the memory.
    """
    stay = [np.flatnonzero(its == 0) for its in reasons]
    starts = np.cumsum([0, *(len(each) for each in stay)])
    groups = -(-(int(starts[-1]) + len(known)) // DIGESTS_AT_ONCE)
    repeated = []
    for group in range(groups):
        found = [known[known[:, 0] % np.uint64(groups) == group]]
        places = [np.full(len(found[0]), -1)]
        for path, each, start in zip(paths, stay, starts.tolist(), strict=False):
            digests = load_arrays(path, "digests")["digests"][: len(each)]
            mine = np.flatnonzero(digests[:, 0] % np.uint64(groups) == group)
            found.append(digests[mine])
            places.append(mine + start)
        both, place = np.concatenate(found), np.concatenate(places)
        order = np.lexsort((both[:, 1], both[:, 0]))  # stable: equal ones stay in their order
        both = both[order]
        again = (both[1:] == both[:-1]).all(1)
        repeated.append(place[order[1:][again]])
    marked = np.sort(np.concatenate(repeated)) if repeated else np.empty(0, np.int64)
    marked = marked[marked >= 0]  # known documents, at -1, are of no part
    bounds = np.searchsorted(marked, starts)
    for i, its in enumerate(reasons):
        its[stay[i][marked[bounds[i] : bounds[i + 1]] - starts[i]]] = REASONS.index(REPEATED)


def _keep_digests(paths: Sequence[Path], reasons: Sequence[np.ndarray], target: Path) -> None:
    """Write the digests of the documents that stay, in order."""
    again = REASONS.index(REPEATED)
    with open(unfinished(target), "wb") as file:
        for path, its in zip(paths, reasons, strict=True):
            compared = its[(its == 0) | (its == again)]
            digests = load_arrays(path, "digests")["digests"][: len(compared)]
            file.write(digests[compared == 0].tobytes())
    os.replace(unfinished(target), target)


def _training_stretches(
    part: Part, noted: Survey, reasons: np.ndarray, held: np.ndarray, cut: np.ndarray
) -> Iterator[int]:
    """Yield the bytes of each stretch of a part's training text, in order."""
    counts = noted.counts[: len(reasons)]
    stay = np.flatnonzero(reasons == 0)
    trained = np.zeros(len(counts), bool)
    trained[stay] = True
    trained[stay[held]] = False
    at = len(counts) if cut[0] < 0 else int(stay[cut[0]])
    end = int(counts[:at].sum())
    yield from noted.stretches[:end][np.repeat(trained[:at], counts[:at])].tolist()
    if at < len(counts):
        head = _head(part, reasons, cut)
        yield from (utf8_size(piece) for piece in sample_pieces(head))
        after = slice(at + 1, None)
        rest = noted.stretches[end + int(counts[at]) : int(counts.sum())]
        yield from rest[np.repeat(trained[after], counts[after])].tolist()


def _head(part: Part, reasons: np.ndarray, cut: np.ndarray) -> str:
    """Return what is left for training of the document that gives its tail.

    The part's documents are read again up to this one.
    """
    index, tail = cut.tolist()
    document = next(
        d for i, d in enumerate(staying(part.source.documents(), reasons)) if i == index
    )
    divided: tuple[Document, Document] | None = divide(document, tail)
    head = divided[0] if divided else document
    assert isinstance(head, str)  # ids train no tokenizer
    return head


def _counted(parts: Sequence[Part], reasons: Sequence[np.ndarray]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {part.split: Counter() for part in parts}
    for part, its in zip(parts, reasons, strict=True):
        for number, count in enumerate(np.bincount(its, minlength=len(REASONS)).tolist()):
            if count and (reason := REASONS[number]):
                counts[part.split][reason] += count
    return {split: dict(sorted(of.items())) for split, of in counts.items()}
