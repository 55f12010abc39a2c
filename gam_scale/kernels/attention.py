"""Causal attention within stretches of tokens, as one operator, without a (T, T) mask.

On a CPU torch's flash kernel runs on one stretch after another, on a GPU one of torch's kernels for
sequences of different lengths on all at once. What these cannot do (dropout on a CPU, queries that
are fewer than their keys there, unusual widths of heads) is computed in blocks of queries.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gam_scale.kernels.attention_blocks import (
    WeightDropout,
    block_bytes,
    blockwise,
    blockwise_backward,
    empty_tokens,
)
from gam_scale.kernels.attention_cuda import (
    Stretches,
    efficient,
    efficient_backward,
    flash,
    flash_backward,
    kernel_for,
)
from gam_scale.kernels.operator import operator
from gam_scale.kernels.pieces import Piece, hidden, pieces

aten = torch.ops.aten
_on_cpu = aten._scaled_dot_product_flash_attention_for_cpu
_on_cpu_backward = aten._scaled_dot_product_flash_attention_for_cpu_backward

Spans = tuple[Tensor, Tensor]
"""Where stretches end: cumulative numbers of queries and of keys, (n + 1,) int32 each.

All rows are laid end to end: from 0 to B T, and from 0 to B S. A stretch may have no queries, or
nothing at all.
"""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans | None = None,
    spans_host: Spans | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Softmax attention of queries (B, H, T, K) to keys and values (B, H, S, K) -> (B, H, T, K).

    The last query of a stretch sees all keys of that stretch, the one before it all but the last.
    Keys that are more than the queries come before these.

    Args:
        q: queries.
        k: keys.
        v: values.
        spans: the stretches, on the device; None: each row is one.
        spans_host: the same on the CPU, where they are read without waiting for a device.
        dropout: probability that a weight is zeroed.
    """
    seed = _seed(q) if dropout else None
    where = (*(spans or (None, None)), *(spans_host or (None, None)))
    return _attention(q, k, v, *where, dropout, seed)[0]


@operator("gam_scale::attention_seed", tags=torch.Tag.nondeterministic_seeded)
def _seed(like: Tensor) -> Tensor:
    """Where dropout's masks come from: () int64, drawn from the CPU's generator and left there.

    Recomputation has to keep it; all else is a function of it.
    """
    return torch.empty((), dtype=torch.int64).random_(0, None)


@_seed.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


def _pairs(q: Tensor, k: Tensor, ends: Tensor | None, key_ends: Tensor | None) -> int:
    """Queries and keys they see, times heads; as if rows were whole where ``ends`` has no data.

    In numpy: numbers that torch computes while it traces have no values.
    """
    rows, heads, length, _ = q.shape
    if type(ends) is Tensor and key_ends is not None and not ends.is_meta:
        n, m = (np.diff(x.numpy()).astype(np.int64) for x in (ends, key_ends))
    else:
        n, m = (np.full(rows, size) for size in (length, k.shape[2]))
    return heads * int((n * m - n * (n - 1) // 2).sum())


def _flops(q, k, v, ends, key_ends, ends_host, key_ends_host, *args, **kwargs) -> int:
    """Two products over all pairs that are seen; what is computed and hidden does not count."""
    return 2 * 2 * q.shape[-1] * _pairs(q, k, ends_host, key_ends_host)


@operator("gam_scale::varlen_attention", flops_of_values=_flops)
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor | None,
    key_ends: Tensor | None,
    ends_host: Tensor | None,
    key_ends_host: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and what the backward pass wants of a kernel: log-sum-exp, its random state.

    The last two are empty where there is nothing of the kind.
    """
    form = _form(q, k, dropout)
    out, lse, rng = _empty(form, q, dropout)
    if form in ("flash", "efficient"):
        stretches = Stretches.of(q, k, ends, key_ends, ends_host, key_ends_host)
        if form == "flash":
            return flash(q, k, v, stretches, dropout, seed)
        return *efficient(q, k, v, stretches, dropout, seed), rng
    parts = pieces(q.shape[0], q.shape[2], k.shape[2], ends_host, key_ends_host)
    if form == "blocks":
        with torch.autocast(q.device.type, enabled=False):  # a caller's reaches into operators
            blockwise(q, k, v, parts, _weight_dropout(dropout, seed), out)
        return out, lse, rng
    for piece in parts:
        assert piece.queries == piece.keys
        at, options = (piece.rows, slice(None), piece.queries), _mask(piece, q)
        out[at], lse[at] = _on_cpu(q[at], k[at], v[at], **options)
    return out, lse, rng


@_attention.register_fake
def _(q, k, v, ends, key_ends, ends_host, key_ends_host, dropout, seed):
    return _empty(_form(q, k, dropout), q, dropout)


def _flops_backward(grad, out, lse, rng, *inputs, **kwargs) -> int:
    """Five products: the scores again; gradients of weights, queries, keys and values."""
    return 5 * _flops(*inputs) // 2


@operator("gam_scale::varlen_attention_backward", flops_of_values=_flops_backward)
def _attention_backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    rng: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor | None,
    key_ends: Tensor | None,
    ends_host: Tensor | None,
    key_ends_host: Tensor | None,
    dropout: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    form = _form(q, k, dropout)
    if form in ("flash", "efficient"):
        stretches = Stretches.of(q, k, ends, key_ends, ends_host, key_ends_host)
        if form == "flash":
            return flash_backward(grad, q, k, v, out, lse, rng, stretches, dropout)
        return efficient_backward(grad, q, k, v, out, lse, stretches, dropout, seed)
    parts = pieces(q.shape[0], q.shape[2], k.shape[2], ends_host, key_ends_host)
    grads = empty_tokens(q), empty_tokens(k), empty_tokens(v)
    if form == "blocks":
        with torch.autocast(q.device.type, enabled=False):
            blockwise_backward(grad, q, k, v, parts, _weight_dropout(dropout, seed), grads)
        return grads
    for piece in parts:
        at, options = (piece.rows, slice(None), piece.queries), _mask(piece, q)
        tensors = (x[at] for x in (grad, q, k, v, out, lse))
        of_piece = _on_cpu_backward(*tensors, 0.0, options.pop("is_causal"), **options)
        for whole, part in zip(grads, of_piece, strict=True):
            whole[at] = part
    return grads


@_attention_backward.register_fake
def _(grad, out, lse, rng, q, k, v, *args):
    return tuple(empty_tokens(x) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    *tensors, dropout, seed = inputs
    ctx.save_for_backward(*output, *tensors, seed)
    ctx.dropout = dropout
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    if grad is None:
        return (None,) * 9
    return *_attention_backward(grad, *tensors, ctx.dropout, seed), *(None,) * 6


_attention.register_autograd(_backward, setup_context=_setup)


def _form(q: Tensor, k: Tensor, dropout: float) -> Literal["cpu", "flash", "efficient", "blocks"]:
    """Which kernel computes it: torch's of that name, or blocks of queries."""
    if q.is_cuda:
        return kernel_for(q)
    return "blocks" if dropout or q.shape[2] != k.shape[2] else "cpu"


def _empty(form: str, q: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's results, not yet filled in."""
    rows, heads, length, _ = q.shape
    shape = {"cpu": (rows, heads, length), "blocks": (0,)}.get(form, (heads, rows * length))
    lse = q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32))
    rng = q.new_empty((2 if form == "flash" and dropout else 0,), dtype=torch.int64)
    return empty_tokens(q), lse, rng


def _mask(piece: Piece, q: Tensor) -> dict:
    """What torch's CPU kernel is told of who sees whom."""
    if len(piece.lengths) == 1:
        return {"is_causal": True}
    unseen = hidden(piece.lengths, q.device)
    mask = torch.zeros(unseen.shape, dtype=q.dtype).masked_fill_(unseen, -torch.inf)
    return {"is_causal": False, "attn_mask": mask}


def workspace(q: Tensor, k: Tensor, dropout: float) -> tuple[float, float]:
    """Bytes that the operator takes beside its inputs and results, and its backward pass."""
    tokens = q[0].numel() + k[0].numel()  # of a row
    if _form(q, k, dropout) == "blocks":
        return block_bytes(q, k)
    return float(q[0].nbytes), float(tokens * q.element_size())


def _weight_dropout(p: float, seed: Tensor | None) -> WeightDropout | None:
    return None if seed is None else WeightDropout(p, int(seed))
