"""The positions and documents of a batch's tokens, worked out once for all layers.

A layout is made on the CPU beside its batch, where reading the documents needs no wait for a
device, and moves to the device with the batch. No layer derives any of it again.
"""

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gam_scale.model.rotary import Rotation, tables

_MIN_ENDS = 64


class Stretches(NamedTuple):
    """Documents as stretches of one sequence: the B T tokens of all rows, laid end to end.

    A row that continues earlier tokens begins with a stretch too. The tensors have fixed lengths
    (see :func:`padded`): empty stretches follow the real ones, up to n in all.
    """

    ends: Tensor  # (n + 1,) int32: stretch i is the tokens from ends[i] to before ends[i + 1]
    starts_document: Tensor  # (n,) bool: whether one starts there, which forgets what came before


class Spans(NamedTuple):
    """The stretches as attention needs them, with keys that may reach back further than queries.

    Span i pairs queries with keys: its last query sees all of its keys, the query before that all
    but the last key, and so on ("bottom-right" causal). Keys without queries are spans of their
    own. The lengths are fixed as in :class:`Stretches`.
    """

    queries: Tensor  # (n + 1,) int32, cumulative: of the rows' queries laid end to end
    keys: Tensor  # (n + 1,) int32, cumulative: of the rows' keys laid end to end


class _RowStretches(NamedTuple):
    """The stretches by row, in numpy, since tensors have no values where torch traces a model."""

    row: np.ndarray
    begin: np.ndarray  # its first token within the row
    end: np.ndarray  # one past its last token
    starts_document: np.ndarray


class Layout:
    """Positions and documents of B rows of T tokens.

    A plain object, not a tuple, because engines' hooks copy and cast the tensors in tuples. It
    never changes once it is made, and its shapes do not depend on where documents start.

    Attributes:
        rows, length: B and T.
        positions: (B, T) int64 tokens since the document's start; (1, T) where nothing resets and
            all rows are alike.
        documents: (B, T) int32, the number of documents that have started in the row up to and
            including this token: 0 where a text from before the row continues. None: no resets.
        starts: (B, T) bool, the first tokens of documents. None: no resets.
        stretches: the documents as stretches, on the device of the other tensors.
        stretches_host: the same on the CPU, to be read without waiting for a device.
        spans: the spans of queries and keys, on the device.
        spans_host: the same on the CPU.
        rotation: the parameters of :attr:`turns`.
        turns: cos and sin (1 or B, T, K / 2) of the rotary angles, by head width K.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        positions: Tensor,
        documents: Tensor | None,
        starts: Tensor | None,
        row_stretches: _RowStretches,
    ) -> None:
        self.rows, self.length = shape
        self.positions, self.documents, self.starts = positions, documents, starts
        self._row_stretches = row_stretches
        self.stretches = self.stretches_host = _stretches(row_stretches)
        self.spans = self.spans_host = Spans(self.ends_host, self.ends_host)
        self.rotation: Rotation | None = None
        self.turns: dict[int, tuple[Tensor, Tensor]] = {}
        self._segments: dict[int, list[Layout]] = {}

    @classmethod
    def of(cls, positions: Tensor | np.ndarray) -> "Layout":
        """Make a layout with a document start at every position 0.

        Args:
            positions: (B, T), on the CPU. A row that begins with another number continues a text.
        """
        positions = torch.as_tensor(positions).long()
        assert positions.device.type == "cpu", "a layout is made on the CPU, then sent"
        starts = positions == 0
        is_start = starts.numpy()
        begins = is_start.copy()
        begins[:, 0] = True
        row, begin = begins.nonzero()
        end = np.append(begin[1:], 0)
        end[end == 0] = begins.shape[1]
        row_stretches = _RowStretches(row, begin, end, is_start[row, begin])
        documents = starts.cumsum(1, dtype=torch.int32)
        rows, length = positions.shape
        return cls((rows, length), positions, documents, starts, row_stretches)

    @classmethod
    def stream(cls, rows: int, length: int, first: int = 0) -> "Layout":
        """Make rows of one stream each, without resets; ``first`` is the first token's position."""
        positions = torch.arange(first, first + length, device="cpu")[None]
        nothing = np.zeros(rows, np.int64)
        row_stretches = _RowStretches(np.arange(rows), nothing, nothing + length, nothing > 0)
        return cls((rows, length), positions, None, None, row_stretches)

    @property
    def ends(self) -> Tensor:
        """(n + 1,) int32 cumulative lengths of the stretches, on the device."""
        return self.stretches.ends

    @property
    def ends_host(self) -> Tensor:
        """(n + 1,) int32 cumulative lengths of the stretches, on the CPU."""
        return self.stretches_host.ends

    def map(self, function: Callable[[Tensor], Tensor]) -> "Layout":
        """Return a layout with ``function`` applied to each tensor but those kept on the host.

        Segments that were made before are mapped too.
        """
        new = copy(self)
        new.positions = function(self.positions)
        if self.documents is not None and self.starts is not None:
            new.documents, new.starts = function(self.documents), function(self.starts)
        new.stretches = Stretches(*map(function, self.stretches))
        same = self.spans.queries is self.ends
        new.spans = Spans(new.ends, new.ends) if same else Spans(*map(function, self.spans))
        new.turns = {k: (function(cos), function(sin)) for k, (cos, sin) in self.turns.items()}
        new._segments = {k: [s.map(function) for s in v] for k, v in self._segments.items()}
        return new

    def tensors(self) -> list[Tensor]:
        """Return all tensors that :meth:`map` maps."""
        tensors: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            tensors.append(x)
            return x

        self.map(note)
        return tensors

    def to(self, device: torch.device | str) -> "Layout":
        """Return the same layout on ``device``; copies to a GPU do not wait."""
        if self.positions.device == torch.device(device):
            return self
        free = torch.device(device).type == "cuda"  # see Batch.to
        return self.map(lambda x: x.to(device, non_blocking=free))

    def pin(self) -> "Layout":
        """Return the same layout in page-locked memory, from which a GPU copies without a wait."""
        return self.map(Tensor.pin_memory)

    def turned(self, rotation: Rotation | None) -> "Layout":
        """Return this layout with the rotary tables for ``rotation``; itself if it has them."""
        if rotation == self.rotation:
            return self
        new = self._with(self.positions)
        new.rotation = rotation
        if rotation is not None:
            new.turns = tables(self.positions, rotation)
        return new

    def continued(self, last: Tensor) -> "Layout":
        """Return this layout with ``last`` (B,) added to positions before a row's first document.

        The layout may be on a device: nothing waits for it. The documents stay as they are.
        """
        last = last.unsqueeze(1)
        if self.documents is not None:
            last = last * (self.documents == 0)
        new = self._with(self.positions + last)
        return new.turned(self.rotation)

    def part(self, rank: int, size: int) -> "Layout":
        """Return one rank's part of rows that ``size`` ranks share: T / size tokens of each row.

        Its queries see the keys of all ranks, T per row (:attr:`spans`).
        """
        length = self.length // size
        part = self._cut(rank * length, (rank + 1) * length)
        part.spans_host = _spans(self._row_stretches, self.length, rank * length, length)
        part.spans = Spans(*(_send(x, self.positions.device) for x in part.spans_host))
        return part

    def segments(self, size: int) -> "list[Layout]":
        """Return layouts of ``size`` tokens of each row at a time, the last one of the rest.

        They are made at the first call. Each describes its own tokens as if there were no others.
        """
        if size not in self._segments:
            firsts = range(0, self.length, size)
            self._segments[size] = [self._cut(i, min(i + size, self.length)) for i in firsts]
        return self._segments[size]

    def _cut(self, first: int, last: int) -> "Layout":
        device = self.positions.device
        new = Layout(
            (self.rows, last - first),
            alone(self.positions[:, first:last]),
            None if self.documents is None else self._documents(first, last),
            None if self.starts is None else alone(self.starts[:, first:last]),
            _cut(self._row_stretches, first, last),
        )
        if device.type != "cpu":
            new.stretches = Stretches(*(_send(x, device) for x in new.stretches_host))
            new.spans = Spans(new.ends, new.ends)
        new.rotation = self.rotation
        new.turns = {
            k: (alone(cos[:, first:last]), alone(sin[:, first:last]))
            for k, (cos, sin) in self.turns.items()
        }
        return new

    def _documents(self, first: int, last: int) -> Tensor:
        """Return :attr:`documents` of a part, counted from 0 for what began before ``first``."""
        assert self.documents is not None
        here = self.documents[:, first:last]
        return here - self.documents[:, first - 1 : first] if first else alone(here)

    def _with(self, positions: Tensor) -> "Layout":
        """Return the same documents with other positions, without tables or segments."""
        new = copy(self)
        new.positions, new.rotation, new.turns, new._segments = positions, None, {}, {}
        return new


def alone(part: Tensor) -> Tensor:
    """Return a part (B, ...) of longer rows with the strides of a tensor of its own.

    The strides of a view depend on the length of the whole rows, and torch would compile a graph
    for each length. For a single row, the change needs no copy.
    """
    return part.squeeze(0).unsqueeze(0) if part.shape[0] == 1 else part.contiguous()


def padded(ends: np.ndarray) -> np.ndarray:
    """Pad cumulative lengths to a power of two, 64 or more, by repeating the last one.

    A compiled graph is made for one shape. With padding it serves any batch, unless the batch has
    more documents than there is room for.
    """
    size = _MIN_ENDS
    while size < len(ends):
        size *= 2
    ends = ends.astype(np.int32)  # joined, since dynamo cannot trace np.pad
    return np.concatenate([ends, np.repeat(ends[-1:], size - len(ends))])


def _stretches(row_stretches: _RowStretches) -> Stretches:
    ends = padded(np.append(0, (row_stretches.end - row_stretches.begin).cumsum()))
    empty = len(ends) - 1 - len(row_stretches.row)
    starts = np.concatenate([row_stretches.starts_document, np.zeros(empty, np.bool_)])
    return Stretches(torch.from_numpy(ends), torch.from_numpy(starts))


def _cut(row_stretches: _RowStretches, first: int, last: int) -> _RowStretches:
    """Return the stretches in tokens ``first`` to before ``last``, with ``first`` as token 0."""
    here = (row_stretches.begin < last) & (row_stretches.end > first)
    row, begin, end, starts_document = (x[here] for x in row_stretches)
    goes_on = begin < first
    begin, end = np.maximum(begin, first), np.minimum(end, last)
    return _RowStretches(row, begin - first, end - first, starts_document & ~goes_on)


def _spans(row_stretches: _RowStretches, length: int, first: int, queries: int) -> Spans:
    """Return the spans of ``queries`` queries from ``first`` on in each row, over all its keys.

    The keys of a stretch begin where the stretch does, even before ``first``. Keys before the first
    such stretch, and keys after the last query, are spans without queries.
    """
    last = first + queries
    here = (row_stretches.begin < last) & (row_stretches.end > first)
    row, begin, end, _ = (x[here] for x in row_stretches)
    end = np.minimum(end, last)
    sizes = []
    for i in range(row[-1] + 1):
        keys, ends = begin[row == i], end[row == i]
        sizes.append((0, keys[0]))
        sizes += zip(ends - np.maximum(keys, first), ends - keys, strict=True)
        sizes.append((0, length - last))
    counts = np.array([pair for pair in sizes if pair[1]]).cumsum(0)
    columns = np.pad(counts, ((1, 0), (0, 0))).T
    return Spans(*(torch.from_numpy(padded(column)) for column in columns))


def _send(x: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to ``device``; to a GPU from page-locked memory, without a wait."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
