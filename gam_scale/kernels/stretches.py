"""Documents of several rows as stretches of one row, the form that packed kernels take."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

CHUNK = 64
"""Tokens of a chunk, which flash-linear-attention's kernels compute at a time."""


class Stretches(NamedTuple):
    """The N stretches that make up B rows of T tokens laid end to end, on the rows' device.

    A stretch is a document, or the part of a document that a row holds. Each stretch has its own
    initial state, and no chunk reaches into another stretch.
    """

    ends: Tensor  # (N + 1,) int32: cumulative lengths, from 0 to B T
    chunks: Tensor  # (chunks, 2) int32: a chunk's stretch, and its place in the stretch
    chunk_ends: Tensor  # (N + 1,) int64: cumulative numbers of chunks
    row: Tensor  # (N,) int64: the row of each stretch
    starts_document: Tensor  # (N,) bool: whether a stretch begins with a document
    first: Tensor  # (B,) int64: each row's first stretch
    last: Tensor  # (B,) int64: each row's last stretch

    def states(self, initial: Tensor, new_state: Tensor | float) -> Tensor:
        """Return the state before each stretch (N, ...).

        Args:
            initial: (B, ...) state before each row's first token.
            new_state: (...) state before each document.
        """
        states = initial[self.row]
        return torch.where(self._starts_like(states), new_state, states)

    def gradients(self, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of ``initial`` and ``new_state``, given those of :meth:`states`."""
        of_rows = grads[self.first]
        starts = self._starts_like(grads)
        of_rows = of_rows.masked_fill(starts[self.first], 0.0)
        return of_rows, grads.masked_fill(~starts, 0.0).sum(0)

    def at_ends(self, grads: Tensor) -> Tensor:
        """Turn gradients (B, ...) of the states after each row into those after each stretch
        (N, ...), which are zero but for a row's last stretch."""
        return grads.new_zeros((len(self.row), *grads.shape[1:])).index_copy_(0, self.last, grads)

    def _starts_like(self, states: Tensor) -> Tensor:
        return self.starts_document.view(-1, *[1] * (states.dim() - 1))


_KNOWN = WeakTensorKeyDictionary()
"""Stretches by ``ends_host``, while that tensor is alive, since every layer asks for the same."""


def stretches(rows: int, starts_document: Tensor, ends: Tensor, ends_host: Tensor) -> Stretches:
    """Return the stretches that make up B rows, without waiting for the device.

    Args:
        rows: B.
        starts_document: (n,) bool, whether a document starts with the stretch.
        ends: (n + 1,) int32, cumulative lengths of the stretches from 0 to B T; empty stretches
            follow after all others.
        ends_host: the same in the CPU's memory.
    """
    sources = (starts_document, ends)
    known = _KNOWN.get(ends_host)
    if known is not None and all(a is b for a, b in zip(known[0], sources, strict=True)):
        return known[1]
    cut = _cut(rows, starts_document, ends, ends_host)
    _KNOWN[ends_host] = (sources, cut)
    return cut


def _cut(rows: int, starts_document: Tensor, ends: Tensor, ends_host: Tensor) -> Stretches:
    lengths = ends_host.diff()
    count, length = int((lengths > 0).sum()), int(ends_host[-1]) // rows
    assert bool((lengths[:count] > 0).all()), "an empty stretch stands before another one"
    n_chunks = int(((lengths + (CHUNK - 1)) // CHUNK).sum())

    # From here on, on the device: with ``output_size``, torch need not wait for a length.
    ends = ends[: count + 1]
    of_each = (ends.diff() + (CHUNK - 1)) // CHUNK
    chunk_ends = F.pad(of_each.cumsum(0), (1, 0))
    numbers = torch.arange(count, device=ends.device)
    stretch = torch.repeat_interleave(numbers, of_each, output_size=n_chunks)
    place = torch.arange(n_chunks, device=ends.device) - chunk_ends[stretch]
    firsts = ends[:-1].long()
    row_firsts = torch.arange(rows, device=ends.device) * length
    return Stretches(
        ends,
        chunks=torch.stack([stretch, place], dim=1).to(ends.dtype),
        chunk_ends=chunk_ends,
        row=firsts // length,
        starts_document=starts_document[:count],
        first=torch.searchsorted(firsts, row_firsts),
        last=torch.searchsorted(firsts, row_firsts + length) - 1,
    )


def in_one_row(*tensors: Tensor) -> list[Tensor]:
    """Return each (B, T, ...) as (1, B T, ...), contiguous."""
    return [x.flatten(0, 1).unsqueeze(0).contiguous() for x in tensors]
