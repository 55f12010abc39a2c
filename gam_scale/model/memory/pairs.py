"""What decays leave between the tokens of a chunk, with one decay per head or per channel."""

from functools import partial

import torch
from torch import Tensor

from gam_scale.kernels.products import Precision, product
from gam_scale.model.memory.recurrence import Chunks
from gam_scale.model.widest import widest

MIN_LOG_DECAY = -10.0
"""A token forgets at most 99.995% of a row; the bound keeps :class:`PairDecays` in range."""

_BASE = 8  # tokens in a block whose factors span exp(+-_BASE / 2 * 10), within float32


def pair_decays(log_decay: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what decays (B, H, N, C), one per head and token, leave within a chunk.

    Returns:
        Three factors: what is left at token t of what token s wrote (B, H, N, C, C), 0 for s > t
        and across documents; what is left at t of the state that the chunk began with
        (B, H, N, C); what is left at the chunk's end of what s wrote (B, H, N, C).
    """
    # A token that forgets all, exp(-200), is in every sum after it. In float32, its rounding would
    # be an error of the decays between later tokens.
    exact = log_decay.to(widest(log_decay.device))
    total = chunks.totals(exact.unsqueeze(-1)).squeeze(-1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).to(log_decay.dtype)
    # Masked before exp, which would overflow above the diagonal.
    left = between.masked_fill(~chunks.same, -torch.inf).exp()
    since_start = total.to(log_decay.dtype).masked_fill(~chunks.carried, -torch.inf).exp()
    return left, since_start, left[..., -1, :]


class HeadDecays:
    """What decays, one per head and token, leave between the tokens of a chunk.

    Args:
        log_decay: (B, H, N, C), at most 0.
        k: (B, H, N, C, K) keys.
        chunks: the chunks that all tensors are cut into.
        precision: precision of products.

    Attributes:
        since_start: (B, H, N, C, 1), what is left at a token of what its chunk began with.
        to_end: (B, H, N, C, 1), what is left at the chunk's end of what a token wrote.
    """

    def __init__(
        self, log_decay: Tensor, k: Tensor, chunks: Chunks, precision: Precision = "ieee"
    ) -> None:
        self._left, since_start, to_end = pair_decays(log_decay, chunks)
        self.since_start, self.to_end = since_start.unsqueeze(-1), to_end.unsqueeze(-1)
        self._k, self._matmul = k, partial(product, precision=precision)

    def pairs(self, x: Tensor, strength: Tensor | None = None) -> Tensor:
        """``strength_t sum_c x[t, c] left[t, s] k[s, c]``, 0 for s > t and across documents.

        Args:
            x: (B, H, N, C, K).
            strength: (B, H, N, C, 1); None: 1.

        Returns:
            (B, H, N, C, C).
        """
        products = self._matmul(x, self._k.mT)
        return (products if strength is None else strength * products) * self._left


class ChannelDecays:
    """As :class:`HeadDecays` with one decay per key channel and token: ``left[t, s, c]``.

    Args:
        log_decay: (B, H, N, C, K), from :data:`MIN_LOG_DECAY` to 0.
        k: (B, H, N, C, K) keys.
        chunks: the chunks that all tensors are cut into.
        precision: precision of products.

    Attributes:
        since_start: (B, H, N, C, K).
        to_end: (B, H, N, C, K).
    """

    def __init__(
        self, log_decay: Tensor, k: Tensor, chunks: Chunks, precision: Precision = "ieee"
    ) -> None:
        total = chunks.totals(log_decay)
        self.since_start = total.exp() * chunks.carried.unsqueeze(-1)
        self.to_end = decay_between(total, total[..., -1:, :]) * chunks.last.unsqueeze(-1)
        self._same = chunks.same
        self._pairs = PairDecays(log_decay, total, k, chunks.same, precision)

    def pairs(self, x: Tensor, strength: Tensor | None = None) -> Tensor:
        """See :meth:`HeadDecays.pairs`."""
        mixed = self._pairs.mix(x) * self._same
        return mixed if strength is None else strength * mixed


class PairDecays:
    """What is left at token t of the share that token s wrote to row m, for pairs s <= t:

        left[t, s, m] = exp(sum of log_decay[m] over s < u <= t) share_s[m]

    It is kept as products of a factor of t and one of s, so that sums over s or m are matmuls. With
    one reference point for a chunk, the factors would overflow. So a block of tokens is halved
    again and again: pairs across its middle take the middle as reference, where both factors are at
    most 1; blocks of 8 take the middle of the range that :data:`MIN_LOG_DECAY` allows. Pairs in
    different documents get finite numbers without meaning.

    Args:
        log_decay: (..., C, M); C a power of two.
        total: (..., C, M), sums of ``log_decay`` within documents.
        share: (..., C, M).
        same: (..., C, C), see :class:`Chunks`.
        precision: precision of the matmuls.
    """

    def __init__(
        self,
        log_decay: Tensor,
        total: Tensor,
        share: Tensor,
        same: Tensor,
        precision: Precision = "ieee",
    ) -> None:
        self.matmul = partial(product, precision=precision)
        self.base = min(_BASE, total.shape[-2])
        within = _diagonal_blocks(same, self.base).to(total.dtype) @ _blocks(log_decay, self.base)
        within = within - self.base / 2 * MIN_LOG_DECAY
        self.within = within.exp(), (-within).exp() * _blocks(share, self.base)
        self.across = []  # factors of the later and the earlier half, each (..., blocks, half, M)
        half = self.base
        while half < total.shape[-2]:
            early, late = _blocks(total, 2 * half).unflatten(-2, (2, half)).unbind(-3)
            middle, written = early[..., -1:, :], _blocks(share, 2 * half)[..., :half, :]
            self.across.append(
                (decay_between(middle, late), decay_between(early, middle) * written)
            )
            half *= 2

    def sum(self, pairs: Tensor) -> Tensor:
        """Return ``sum_s pairs[t, s] left[t, s, m]``: (..., C, C), 0 for s > t, -> (..., C, M)."""
        late, early = self.within
        blocks = _diagonal_blocks(pairs, self.base)
        result = late * self.matmul(blocks, early)  # (..., blocks, base, M)
        for late, early in self.across:
            half = late.shape[-2]
            between = _diagonal_blocks(pairs, 2 * half)[..., half:, :half]
            first, second = result.unflatten(-3, (-1, 2)).unbind(-3)
            result = torch.cat([first, second + late * self.matmul(between, early)], dim=-2)
        return result.squeeze(-3)

    def mix(self, weights: Tensor) -> Tensor:
        """Return ``sum_m weights[t, m] left[t, s, m]`` for s <= t: (..., C, M) -> (..., C, C).

        What is above the diagonal has no meaning.
        """
        late, early = self.within
        blocks = _blocks(weights, self.base) * late
        result = self.matmul(blocks, early.mT)  # (..., blocks, base, base)
        for late, early in self.across:
            half = late.shape[-2]
            second_half = _blocks(weights, 2 * half)[..., half:, :]
            between = self.matmul(second_half * late, early.mT)
            first, second = result.unflatten(-3, (-1, 2)).unbind(-3)
            upper = torch.cat([first, torch.zeros_like(first)], dim=-1)
            result = torch.cat([upper, torch.cat([between, second], dim=-1)], dim=-2)
        return result.squeeze(-3)


def decay_between(early: Tensor, late: Tensor) -> Tensor:
    """Return the decay between two sums of log decays, finite even across documents.

    Within a document, rounding may put the later sum a little above the earlier. Such a gap is
    kept, since a clamp would stop gradients; a gap above 1 is one across documents.
    """
    gap = late - early
    return gap.masked_fill(gap > 1.0, 0.0).exp()


def _blocks(x: Tensor, size: int) -> Tensor:
    """(..., C, M) -> (..., C / size, size, M)."""
    return x.unflatten(-2, (-1, size))


def _diagonal_blocks(x: Tensor, size: int) -> Tensor:
    """(..., C, C) -> (..., C / size, size, size)."""
    x = x.unflatten(-2, (-1, size)).unflatten(-1, (-1, size))
    return x.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
