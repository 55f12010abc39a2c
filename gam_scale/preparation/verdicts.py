"""Which documents of a corpus stay and which are held out, judged over all of its parts at once.

The same as one process finds that goes over them in their order: the first of equal documents
stays, whichever part it is in, and documents are held out by their number in the whole corpus.
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
from gam_scale.data.tokenizer_training import Draw, stretches
from gam_scale.preparation.parts import Part
from gam_scale.preparation.saved import load_arrays, save_arrays, unfinished
from gam_scale.preparation.survey import REASONS, Survey, staying

DIGESTS_AT_ONCE = 1 << 25  # compared in memory, of about 80 bytes each


@dataclass(frozen=True)
class Verdict:
    """What becomes of the documents of a part.

    Attributes:
        reasons: (n,) uint8 for its first n documents, which are all that are read.
        held: of those that stay, by index among them, the ones held out for validation.
        cut: (2,) index of one that is divided, or -1, and the bytes of its tail.
        sample: of the stretches of its training text, those that train the tokenizer.
    """

    reasons: np.ndarray
    held: np.ndarray
    cut: np.ndarray
    sample: np.ndarray

    @property
    def hold_out(self) -> HoldOut:
        """Of the documents that stay."""
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
    """Write a verdict for each part, of the surveys of all; documents left out, by split and why.

    Args:
        spec: what is prepared.
        parts: of all sources.
        surveys: the folder with ``NUMBER.npz`` for each part.
        verdicts: the folder that is filled likewise.
        digests: the file of those of the documents that stay, where they are deduplicated.

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
    """The reasons of each part, as far as ``max_documents`` of its split reaches."""
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
    """Note which documents are an earlier or a known one again, some of the digests at a time."""
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
    marked = marked[marked >= 0]  # the known ones are of no part
    bounds = np.searchsorted(marked, starts)
    for i, its in enumerate(reasons):
        its[stay[i][marked[bounds[i] : bounds[i + 1]] - starts[i]]] = REASONS.index(REPEATED)


def _keep_digests(paths: Sequence[Path], reasons: Sequence[np.ndarray], target: Path) -> None:
    """Write those of the documents that stay, in their order."""
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
    """Bytes of each stretch of a part's training text, in their order."""
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
        yield from (utf8_size(piece) for piece in stretches(head))
        after = slice(at + 1, None)
        rest = noted.stretches[end + int(counts[at]) : int(counts.sum())]
        yield from rest[np.repeat(trained[after], counts[after])].tolist()


def _head(part: Part, reasons: np.ndarray, cut: np.ndarray) -> str:
    """What is left for training of the document that gives its tail: it alone is read again."""
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
