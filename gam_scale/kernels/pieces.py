"""Attention over stretches of tokens, cut into the dense calls that compute it on a CPU."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

RUN = 128
"""Most tokens of a run: short stretches computed in one call, with pairs across two of them masked.

A call costs some 20 microseconds whatever its size: as much as the attention of 20 tokens.
"""


class Piece(NamedTuple):
    """Queries of one row, and the keys that they see: one stretch, or a run of short ones.

    The last query sees the last key. Where there are more keys than queries, all queries see the
    surplus keys, which come first.
    """

    rows: slice  # one
    queries: slice
    keys: slice
    lengths: tuple[int, ...]  # tokens of each stretch in it

    def may_join(self, piece: "Piece") -> bool:
        """Return whether ``piece``, if it is the next stretch, fits into the same run."""
        follows = self.rows == piece.rows and self.queries.stop == piece.queries.start
        n = piece.queries.stop - self.queries.start
        return follows and n <= RUN and n == piece.keys.stop - self.keys.start

    def joined(self, piece: "Piece") -> "Piece":
        """Return this piece and the next stretch, ``piece``, as one."""
        return Piece(
            self.rows,
            slice(self.queries.start, piece.queries.stop),
            slice(self.keys.start, piece.keys.stop),
            self.lengths + piece.lengths,
        )


def pieces(
    rows: int, length: int, keys: int, ends: Tensor | None, key_ends: Tensor | None
) -> Iterator[Piece]:
    """Yield pieces in order that hold each query once.

    Args:
        rows: B; without ``ends`` each row is one stretch.
        length: queries of each row.
        keys: keys of each row.
        ends: (n + 1,) int32 on the CPU, cumulative numbers of queries of the stretches, rows laid
            end to end; a stretch may have none.
        key_ends: the same of keys.
    """
    if ends is None or key_ends is None:
        assert ends is key_ends, "the stretches of queries are known, those of keys are not"
        for row in range(rows):
            yield Piece(slice(row, row + 1), slice(0, length), slice(0, keys), (length,))
        return
    at, key_at = ends.numpy().tolist(), key_ends.numpy().tolist()
    assert at[-1] == rows * length and key_at[-1] == rows * keys, (at[-1], key_at[-1])
    last: Piece | None = None
    for start, stop, key, key_stop in zip(at, at[1:], key_at, key_at[1:], strict=False):
        if start == stop:
            continue
        row, first = divmod(start, length)
        queries = slice(first, first + stop - start)
        where = slice(key - row * keys, key_stop - row * keys)
        piece = Piece(slice(row, row + 1), queries, where, (stop - start,))
        if last is not None and last.may_join(piece):
            last = last.joined(piece)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def hidden(lengths: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Return the (n, n) bool mask, True where hidden, of stretches of the given lengths."""
    n = sum(lengths)
    later = torch.ones(n, n, dtype=torch.bool, device=device).triu_(1)
    if len(lengths) == 1:
        return later
    number = torch.repeat_interleave(torch.tensor(lengths, device=device), output_size=n)
    return later.logical_or_(number[:, None] != number)
