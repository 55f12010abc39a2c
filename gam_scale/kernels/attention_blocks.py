"""Attention in blocks of queries: any device, head width and dropout, in memory linear in T."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from gam_scale.kernels.lanes import draw_lanes
from gam_scale.kernels.pieces import Piece, hidden

QUERIES = 64
"""Queries of a block: fewer make the products thin, more compute more pairs that are masked."""
WEIGHTS = 1 << 20
"""Most weights of a block, unless one head alone has more: 4 MiB, which a CPU's caches hold."""


class WeightDropout(NamedTuple):
    """Dropout of attention weights by masks that the backward pass draws again from the seed.

    The probability is rounded to a multiple of 2**-16, as in :mod:`gam_scale.model.dropout`.
    """

    p: float
    seed: int

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator that draws the masks of all blocks, one after another."""
        return torch.Generator(device).manual_seed(self.seed)

    def mask(self, weights: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return True where a weight is dropped; ``generator`` is from :meth:`generator`."""
        assert generator is not None
        lanes = draw_lanes(weights.shape, weights.device, generator)
        return lanes < round(self.p * (1 << 16)) - (1 << 15)

    @property
    def scale(self) -> float:
        """Factor of the weights that stay, which preserves their mean."""
        return (1 << 16) / ((1 << 16) - round(self.p * (1 << 16)))


def blockwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Iterable[Piece],
    dropout: WeightDropout | None,
    out: Tensor,
    window: int = 0,
) -> None:
    """Write attention of q (B, H, T, K) to k and v (B, H, S, K) into ``out`` (B, H, T, K).

    With a ``window`` a query sees at most that many keys.
    """
    generator = dropout.generator(q.device) if dropout else None
    for piece in pieces:
        queries, keys, values = _piece_tensors(piece, q, k, v)
        result = torch.empty_like(queries)
        for at, seen, mask in _blocks(piece, queries, keys, window):
            weights = _weights(queries[at], keys[seen], mask)
            if dropout:
                weights.masked_fill_(dropout.mask(weights, generator), 0.0)
            torch.bmm(weights, values[seen], out=result[at])
        if dropout:
            result *= dropout.scale
        _copy_into(result, out[piece.rows, :, piece.queries])


def blockwise_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Iterable[Piece],
    dropout: WeightDropout | None,
    gradients: tuple[Tensor, Tensor, Tensor],
    window: int = 0,
) -> None:
    """Write the gradients of q, k and v into ``gradients``; the weights are computed again."""
    grad_q, grad_k, grad_v = gradients
    grad_k.zero_(), grad_v.zero_()  # keys that no query sees are in no piece
    generator = dropout.generator(q.device) if dropout else None
    for piece in pieces:
        queries, keys, values = _piece_tensors(piece, q, k, v)
        grads = _flat(grad[piece.rows, :, piece.queries])
        if dropout:
            grads = grads * dropout.scale
        of_queries = torch.empty_like(queries)
        of_keys, of_values = torch.zeros_like(keys), torch.zeros_like(values)
        for at, seen, mask in _blocks(piece, queries, keys, window):
            weights = kept = _weights(queries[at], keys[seen], mask)
            of_weights = torch.bmm(grads[at], values[seen].mT)
            if dropout:
                dropped = dropout.mask(weights, generator)
                kept = weights.masked_fill(dropped, 0.0)
                of_weights.masked_fill_(dropped, 0.0)
            of_values[seen].baddbmm_(kept.mT, grads[at])
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_keys[seen].baddbmm_(of_scores.mT, queries[at])
            torch.bmm(of_scores, keys[seen], out=of_queries[at])
        _copy_into(of_queries.mul_(_scale(q)), grad_q[piece.rows, :, piece.queries])
        _copy_into(of_keys, grad_k[piece.rows, :, piece.keys])
        _copy_into(of_values, grad_v[piece.rows, :, piece.keys])


def block_bytes(q: Tensor, k: Tensor, window: int = 0) -> tuple[float, float]:
    """Return the bytes that forward and backward take for the longest piece, a whole row."""
    tokens, keys = q[0].numel(), k[0].numel()
    block = min(q.shape[2], QUERIES)
    seen = min(k.shape[2], block + window - 1) if window else k.shape[2]
    weights = max(WEIGHTS, block * seen)
    weights = min(weights, q.shape[1] * block * seen)
    size = torch.promote_types(q.dtype, torch.float32).itemsize
    # Forward: queries and result; keys and values; weights and the draws for their dropout.
    # Backward: queries, gradients of result and queries; keys, values and their gradients; weights,
    # kept weights, gradients of weights and scores.
    return float(size * (2 * tokens + 2 * keys + 2 * weights)), float(
        size * (3 * tokens + 4 * keys + 4 * weights)
    )


def empty_tokens(like: Tensor) -> Tensor:
    """Allocate (B, H, T, K) laid out as (B, T, H, K), since later code joins a token's heads."""
    b, h, t, k = like.shape
    return like.new_empty(b, t, h, k).transpose(1, 2)


def _blocks(
    piece: Piece, queries: Tensor, keys: Tensor, window: int
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], Tensor]]:
    """Cut a piece's (N, n, K) queries and (N, m, K) keys into blocks; yield the indices and mask.

    A block has some of the queries and all keys that they may see. The mask is True where a query
    does not see a key; it covers the last keys, as many as queries, or with a window all keys.
    """
    heads, length, _ = queries.shape
    is_run = len(piece.lengths) > 1  # of few tokens
    size = length if is_run else min(length, QUERIES)
    before = keys.shape[1] - length
    most = min(keys.shape[1], size + window - 1) if window else keys.shape[1]
    some = max(1, WEIGHTS // (size * most))
    for first in range(0, length, size):
        last = min(first + size, length)
        start = max(0, before + first - window + 1) if window else 0
        mask = hidden(piece.lengths if is_run else (last - first,), queries.device)
        if window:
            mask = _with_window(mask, before + last - start, window)
        for head in range(0, heads, some):
            of = slice(head, head + some)
            yield (of, slice(first, last)), (of, slice(start, before + last)), mask


def _with_window(mask: Tensor, keys: int, window: int) -> Tensor:
    """Widen ``mask`` (n, n) of the last n keys to all ``keys``; hide those before the window."""
    n = mask.shape[0]
    whole = torch.ones(n, keys, dtype=torch.bool, device=mask.device).tril_(keys - n - window)
    whole[:, keys - n :].logical_or_(mask)
    return whole


def _weights(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over keys of the masked scores, (N, n, m)."""
    scores = torch.bmm(queries, keys.mT)
    scores[..., -mask.shape[1] :].masked_fill_(mask, -torch.inf)
    return torch.softmax(scores, -1, out=scores)


def _piece_tensors(piece: Piece, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return scaled queries, keys and values, each (rows * heads, tokens, K), in fp32 or fp64."""
    queries = _flat(q[piece.rows, :, piece.queries]) * _scale(q)
    return queries, _flat(k[piece.rows, :, piece.keys]), _flat(v[piece.rows, :, piece.keys])


def _flat(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(0, 1).contiguous()


def _copy_into(x: Tensor, place: Tensor) -> None:
    place.copy_(x.view(place.shape))


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5
