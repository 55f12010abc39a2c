"""The algebra of every written memory: ``state_t = decay_t state_{t-1} + write_t``.

What consecutive tokens do to a state is such a pair of decay and write too, a :class:`Fold`, and
two folds in a row make one. So a sequence is cut into chunks whose folds are computed side by side,
and a scan over the chunks gives each its starting state. A sequence that is cut over ranks needs
one fold from each rank, whatever its length. A decay is a factor per row of a state, or a matrix.
"""

import os
import shutil
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.kernels.operator import operator
from gam_scale.kernels.products import Precision, product, products_in
from gam_scale.model.context import Context
from gam_scale.model.layout import Layout

LARGEST_MATRIX = 256
"""Most rows of a decay matrix in the kernel: accumulators of more would leave the registers."""

_HAS_TRITON = find_spec("triton") is not None and any(
    shutil.which(compiler) for compiler in (os.environ.get("CC", "gcc"), "clang")
)
"""Whether there is Triton, and a C compiler with which it builds the launchers of kernels."""


class Fold(NamedTuple):
    """What consecutive tokens do to a state (..., M, D): ``state -> decay state + write``."""

    decay: Tensor  # (..., M, 1), a factor per row, or (..., M, M), a matrix
    write: Tensor  # (..., M, D)

    def __call__(self, state: Tensor, precision: Precision = "ieee") -> Tensor:
        """Return the state after the tokens, (..., M, D)."""
        is_matrix = self.decay.shape[-1] > 1
        left = product(self.decay, state, precision) if is_matrix else self.decay * state
        return left + self.write

    def of_nothing(self) -> Tensor:
        """Return the fold of no tokens, its decay and write side by side."""
        unit = torch.ones_like(self.decay)
        if unit.shape[-1] > 1:
            unit = torch.eye(unit.shape[-1], device=unit.device, dtype=unit.dtype).expand_as(unit)
        return torch.cat([unit, torch.zeros_like(self.write)], dim=-1)


class Chunks:
    """T tokens cut into N chunks of C, the last one padded, and the documents in them.

    C is a power of two, and no more than T needs.

    Args:
        layout: the tokens' layout; what came before a document's start is forgotten there.
        size: the largest C, a power of two.

    Attributes:
        starts: (B, 1, N, C) bool, the first tokens of documents; None where nothing resets.
        carried: (B, 1, N, C) bool, tokens whose document began before their chunk.
        last: (B, 1, N, C) bool, tokens whose document lasts to the end of their chunk.
        same: (B, 1, N, C, C) bool: ``same[t, s]`` if s is t or before it in the same document.
    """

    def __init__(self, layout: Layout, size: int) -> None:
        length = layout.length
        while size // 2 >= max(1, length):
            size //= 2
        self.length, self.size, self.count = length, size, -(-length // size)
        device = layout.positions.device
        causal = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        if layout.documents is None or layout.starts is None:
            self.starts = None
            self.carried = self.last = causal.new_ones(1, 1, 1, size)
            self.same = causal[None, None, None]
            return
        self.starts = self.cut(layout.starts.unsqueeze(-1))
        padding = layout.documents[:, -1:].expand(-1, self.count * size - length)
        document = torch.cat([layout.documents, padding], dim=1).view(-1, 1, self.count, size)
        before = F.pad(document[:, :, :-1, -1:], (0, 0, 1, 0))  # of the token before the chunk
        self.carried, self.last = document == before, document == document[..., -1:]
        self.same = (document.unsqueeze(-1) == document.unsqueeze(-2)) & causal

    def cut(self, x: Tensor) -> Tensor:
        """(B, T, H, ...) -> (B, H, N, C, ...), padded with zeros."""
        missing = self.count * self.size - self.length
        if missing:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
        return x.unflatten(1, (self.count, self.size)).movedim(3, 1)

    def totals(self, log_decay: Tensor) -> Tensor:
        """Sum (B, H, N, C, M) from the document's start, or the chunk's, up to each token.

        This is a product with a mask rather than differences of running sums, so that not even the
        rounding depends on other documents.
        """
        return self.same.to(log_decay.dtype) @ log_decay

    def join(self, x: Tensor) -> Tensor:
        """(B, H, N, C, ...) -> (B, T, H, ...): undoes :meth:`cut`."""
        return x.movedim(1, 3).flatten(1, 2)[:, : self.length]


def chunk_states(
    folds: Fold, initial: Tensor, context: Context | None, precision: Precision = "ieee"
) -> tuple[Tensor, Tensor]:
    """Return the states before each chunk, (B, H, N, M, D), and after the last, (B, H, M, D).

    Args:
        folds: the chunks' folds, (B, H, N, M, 1 or M) and (B, H, N, M, D).
        initial: (B, H, M, D) before the first token of the whole sequence.
        context: the ranks over which the sequence is cut; they exchange one fold each.
        precision: precision of products with decays that are matrices.
    """
    if context is None:
        states = linear_scan(folds.decay, folds.write, initial, precision)
        return states[:, :, :-1], states[:, :, -1]
    # The fold of all tokens before each chunk on this rank, by a scan whose state is that fold.
    own = folds.decay.shape[-1]
    write = F.pad(folds.write, (own, 0))
    nothing = Fold(folds.decay[:, :, 0], folds.write[:, :, 0]).of_nothing()
    so_far = linear_scan(folds.decay, write, nothing, precision)
    initial = state_of_rank(so_far[:, :, -1], initial, context)
    states = Fold(so_far[..., :own], so_far[..., own:])(initial.unsqueeze(2), precision)
    return states[:, :, :-1], states[:, :, -1]


def state_of_rank(fold: Tensor, initial: Tensor, context: Context) -> Tensor:
    """Return the state (..., M, D) before this rank's tokens.

    Args:
        fold: the fold of this rank's tokens, decay and write side by side, (..., M, 1 or M, + D).
        initial: (..., M, D) before the first token of the whole sequence.
        context: the ranks, which exchange their folds.
    """
    own = fold.shape[-1] - initial.shape[-1]
    ranks = context.gather(fold)
    return state_before(Fold(ranks[..., :own], ranks[..., own:]), initial, context)


def state_before(folds: Fold, state: Tensor, context: Context) -> Tensor:
    """Return the state before this rank's first token: ``state`` after all earlier ranks' tokens.

    Every rank computes with the folds of all ranks and discards the results for later ones, so that
    every rank takes part in the exchange of gradients in the backward pass.

    Args:
        folds: the folds of each rank's tokens, (ranks, ...).
        state: the state before the sequence's first token.
        context: the ranks.
    """
    before = torch.arange(context.size, device=state.device) < context.rank
    for rank, (decay, write) in enumerate(zip(*folds, strict=True)):
        state = torch.where(before[rank], Fold(decay, write)(state), state)
    return state


def linear_scan(
    decay: Tensor, write: Tensor, initial: Tensor, precision: Precision = "ieee"
) -> Tensor:
    """Return all states of ``state_i = decay_i state_{i-1} + write_i``, the initial one first.

    On CUDA, where Triton is installed, one kernel walks all steps (see kernels/chunk_scan).

    Args:
        decay: (B, H, N, M, 1), factors of rows, or (B, H, N, M, M), matrices.
        write: (B, H, N, M, D).
        initial: (B, H, M, D).
        precision: precision of products with matrices, on CUDA.

    Returns:
        (B, H, N + 1, M, D).
    """
    flat = (x.flatten(0, 1).contiguous() for x in (decay, write, initial))
    return _linear_scan(*flat, precision).unflatten(0, write.shape[:2])


# A custom operator, so that torch.compile puts the scan into its caller's graph as one node: no
# graph break, and no loop to unroll.
@operator("gam_scale::linear_scan", keep="dear")
def _linear_scan(decay: Tensor, write: Tensor, initial: Tensor, precision: str) -> Tensor:
    if _has_kernel(decay, write):
        from gam_scale.kernels.chunk_scan import forward

        return forward(decay, write, initial, precision)
    rows, steps, *state = write.shape
    states = write.new_empty((rows, steps + 1, *state))
    states[:, 0].copy_(initial)
    add = torch.baddbmm if decay.shape[-1] > 1 else torch.addcmul
    with products_in(precision):
        for i in range(steps):
            add(write[:, i], decay[:, i], states[:, i], out=states[:, i + 1])
    return states


@operator("gam_scale::linear_scan_backward")
def _linear_scan_backward(grad_states: Tensor, decay: Tensor, precision: str) -> Tensor:
    """Return the gradients of the initial state and of each write, in the order of the states.

    With g_i the gradient of state_i through everything after it: dwrite_i = g_i, g_{i-1} =
    dL/dstate_{i-1} + decay_iᵀ g_i.
    """
    if _has_kernel(decay, grad_states):
        from gam_scale.kernels.chunk_scan import backward

        return backward(grad_states, decay, precision)
    dense = decay.shape[-1] > 1
    add, transposed = (torch.baddbmm, decay.mT) if dense else (torch.addcmul, decay)
    grads = torch.empty_like(grad_states)
    grads[:, -1].copy_(grad_states[:, -1])
    with products_in(precision):
        for i in reversed(range(decay.shape[1])):
            add(grad_states[:, i], transposed[:, i], grads[:, i + 1], out=grads[:, i])
    return grads


def _has_kernel(decay: Tensor, states: Tensor) -> bool:
    """Return whether kernels/chunk_scan takes these; it needs Triton and float32."""
    fits = states.dtype == torch.float32 and decay.shape[-1] <= LARGEST_MATRIX
    return states.is_cuda and _HAS_TRITON and fits


@_linear_scan.register_fake
def _(decay: Tensor, write: Tensor, initial: Tensor, precision: str) -> Tensor:
    rows, steps, *state = write.shape
    return write.new_empty((rows, steps + 1, *state))


@_linear_scan_backward.register_fake
def _(grad_states: Tensor, decay: Tensor, precision: str) -> Tensor:
    return torch.empty_like(grad_states)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output)
    ctx.precision = inputs[3]


def _gradients(ctx, grad_states: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    """Return the gradients; a decay's is g_i state_{i-1}ᵀ, or its diagonal for factors of rows."""
    decay, states = ctx.saved_tensors
    grads = _linear_scan_backward(grad_states.contiguous(), decay, ctx.precision)
    grad_write, before = grads[:, 1:], states[:, :-1]
    if decay.shape[-1] > 1:
        grad_decay = product(grad_write, before.mT, ctx.precision)
    else:
        grad_decay = (grad_write * before).sum(-1, keepdim=True)
    return grad_decay, grad_write, grads[:, 0], None


_linear_scan.register_autograd(_gradients, setup_context=_save)
