"""Operators for gated slot attention, in flash-linear-attention's kernels."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator
from gam_scale.kernels.stretches import CHUNK, Stretches, in_one_row, stretches


def fla_slot(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    bank: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute ``gam_scale.model.mixers.slot.slot_memory`` with flash-linear-attention 0.6.0.

    Args:
        q: (B, T, H, K) queries, scaled, in the dtype of the products: bfloat16, or float32, which
            the kernels multiply in TF32.
        k: (B, T, H, K) keys, and v: (B, T, H, V) values, in the same dtype.
        log_decay: (B, T, H, M) float32.
        initial: (B, H, M, K + V) float32 state before the first token: each slot's key and value.
        bank: (H, M, K + V) float32 state at the start of a document.
        starts_document: like ``ends`` and ``ends_host``, see
            :func:`gam_scale.kernels.stretches.stretches`.

    Returns:
        outputs (B, T, H, V) in the dtype of ``q``, and the state after the last token
        (B, H, M, K + V), float32.
    """
    share = -torch.expm1(log_decay)  # of a slot that a token overwrites; rounded after this line
    stretches_of = (starts_document, ends, ends_host)
    return _fla_slot(q, k, v, share.to(q.dtype), log_decay, initial, bank, *stretches_of)[:2]


class Functions(NamedTuple):
    """The functions that the operators call: flash-linear-attention's, and one of our own."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    sums: Callable[..., Tensor]  # cumulative, within chunks
    known_chunk_count: Callable[[Stretches], AbstractContextManager[None]]


def functions() -> Functions:
    """Import the functions from the installed package."""
    from fla.ops.gsa.chunk_bwd import chunk_gsa_bwd
    from fla.ops.gsa.chunk_fwd import chunk_gsa_fwd
    from fla.ops.utils import chunk_local_cumsum

    return Functions(chunk_gsa_fwd, chunk_gsa_bwd, chunk_local_cumsum, known_chunk_count)


class _LastKnown(Tensor):
    """Numbers on a device, the last of which is known on the CPU too."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    last: Tensor

    def __getitem__(self, index: Any) -> Tensor:
        return self.last if index == -1 else super().__getitem__(index)


@contextmanager
def known_chunk_count(cut: Stretches) -> Iterator[None]:
    """Give flash-linear-attention the number of chunks without a wait for the device.

    Its functions for chunks' states take only cumulative lengths, and would ask the device how many
    chunks these make: six times in each layer's step.
    """
    from fla.ops.common import chunk_h

    ends = cut.chunk_ends.as_subclass(_LastKnown)
    ends.last = torch.tensor(len(cut.chunks))
    ask, chunk_h.prepare_chunk_offsets = chunk_h.prepare_chunk_offsets, lambda *_: ends
    try:
        yield
    finally:
        chunk_h.prepare_chunk_offsets = ask


def _flops(
    q: torch.Size, k: torch.Size, v: torch.Size, share: torch.Size, *_: Any, **__: Any
) -> int:
    """Count the products, which take chunks of C tokens: per token and head C K, C V and twice C M
    for pairs of tokens, twice M K and twice M V for states, at two FLOPs each."""
    rows, length, heads, key = q
    slots, width = share[-1], key + v[-1]
    return 2 * rows * length * heads * (CHUNK * (width + 2 * slots) + 2 * slots * width)


def _backward_flops(
    grad: Any,
    grad_final: Any,
    q: torch.Size,
    k: torch.Size,
    v: torch.Size,
    share: torch.Size,
    *_: Any,
    **__: Any,
) -> int:
    """Count the backward pass's products: those computed again, and all products' gradients."""
    rows, length, heads, key = q
    slots, width = share[-1], key + v[-1]
    return 2 * rows * length * heads * (CHUNK * (2 * width + 5 * slots) + 5 * slots * width)


@operator("gam_scale::fla_slot", keep="dear", flops=_flops)
def _fla_slot(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    share: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    bank: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return outputs, final states and, for backward, scores, weights and products of token pairs.

    No shape depends on the number of stretches, only on (B, T).
    """
    fla = functions()
    rows, length = q.shape[:2]
    cut = stretches(rows, starts_document, ends, ends_host)
    flat = in_one_row(q, k, v, share)
    with fla.known_chunk_count(cut):
        _, keys, scores, weights, pairs, _, values, y = fla.forward(
            **dict(zip(("q", "k", "v", "s"), flat, strict=True)),
            g=_totals(fla, log_decay, cut),
            initial_state=_states(cut, initial, bank, q.shape[-1]),
            output_final_state=True,
            scale=1.0,
            cu_seqlens=cut.ends,
            chunk_indices=cut.chunks,
        )
    final = torch.cat([keys[cut.last].mT, values[cut.last]], dim=-1)
    of_tokens = (y.to(q.dtype), scores.to(q.dtype), weights.float(), pairs.float())
    y, *saved = (x.view(rows, length, *x.shape[2:]) for x in of_tokens)
    return y, final, *saved


@operator("gam_scale::fla_slot_backward", flops=_backward_flops)
def _fla_slot_backward(
    grad: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    share: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    bank: Tensor,
    scores: Tensor,
    weights: Tensor,
    pairs: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, share, log_decay, the initial state and the bank.

    flash-linear-attention rounds that of ``log_decay`` to the dtype of ``share``.
    """
    fla = functions()
    rows, length, _, width = q.shape
    cut = stretches(rows, starts_document, ends, ends_host)
    names = ("do", "q", "k", "v", "s", "ok", "p", "A")
    flat = in_one_row(grad, q, k, v, share, scores, weights, pairs)
    last = cut.at_ends(grad_final)
    with fla.known_chunk_count(cut):
        dq, dk, dv, dshare, ddecay, dkeys, dvalues = fla.backward(
            **dict(zip(names, flat, strict=True)),
            g=_totals(fla, log_decay, cut),
            h=(None, None),
            initial_state=_states(cut, initial, bank, width),
            scale=1.0,
            dht=(last[..., :width].mT.contiguous(), last[..., width:].contiguous()),
            cu_seqlens=cut.ends,
            chunk_indices=cut.chunks,
        )
    pairs_of = ((dq, q), (dk, k), (dv, v), (dshare, share), (ddecay, log_decay))
    grads = (x.view(rows, length, *x.shape[2:]).to(of.dtype) for x, of in pairs_of)
    dinitial, dbank = cut.gradients(torch.cat([dkeys.mT, dvalues], dim=-1))
    return *grads, dinitial, dbank


def _totals(fla: Functions, log_decay: Tensor, cut: Stretches) -> Tensor:
    """Return the cumulative sums within chunks of the decays' binary logarithms, (1, B T, H, M)."""
    (flat,) = in_one_row(log_decay)
    ends = {"cu_seqlens": cut.ends, "chunk_indices": cut.chunks}
    return fla.sums(flat, chunk_size=CHUNK, scale=math.log2(math.e), **ends)


def _states(cut: Stretches, initial: Tensor, bank: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the state before each stretch: keys as columns (N, H, K, M), values (N, H, M, V)."""
    rows = cut.states(initial, bank)
    return rows[..., :width].mT.contiguous(), rows[..., width:].contiguous()


@_fla_slot.register_fake
def _(q, k, v, share, log_decay, initial, bank, starts_document, ends, ends_host):
    heads, slots = q.shape[:3], share.shape[-1]
    return (
        q.new_empty((*heads, v.shape[-1])),
        initial.new_empty(initial.shape),
        q.new_empty((*heads, slots)),
        q.new_empty((*heads, slots), dtype=torch.float32),
        q.new_empty((*heads, CHUNK), dtype=torch.float32),
    )


@_fla_slot_backward.register_fake
def _(grad, grad_final, q, k, v, share, log_decay, initial, bank, *_):
    leaves = (q, k, v, share, log_decay, initial, bank)
    return tuple(x.new_empty(x.shape) for x in leaves)


def _save(ctx, inputs, output) -> None:
    *leaves, starts_document, ends, ends_host = inputs
    _, _, *saved = output
    ctx.save_for_backward(*leaves, *saved, starts_document, ends, ends_host)
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)


def _gradients(ctx, grad, grad_final, *_):
    saved = ctx.saved_tensors  # a checkpoint hands them out once
    q, v, initial = (saved[i] for i in (0, 2, 5))
    if grad is None:
        grad = q.new_zeros((*q.shape[:3], v.shape[-1]))
    if grad_final is None:
        grad_final = torch.zeros_like(initial)
    grads = _fla_slot_backward(grad, grad_final, *saved)
    return *grads, None, None, None


_fla_slot.register_autograd(_gradients, setup_context=_save)
