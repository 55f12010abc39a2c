"""Causal attention within stretches of tokens, as one operator, without a (T, T) mask.

On a CPU torch's flash kernel computes one stretch after another; on a GPU one of torch's kernels
for sequences of different lengths computes all of them at once. Cases that these kernels lack (on a
CPU dropout, windows, and fewer queries than keys; on a GPU unusual head widths, and windows outside
its flash kernel) are computed in blocks of queries.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

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
"""Ends of the stretches: cumulative numbers of queries and of keys, (n + 1,) int32 each.

They count over all rows laid end to end, from 0 to B T and from 0 to B S. A stretch may have keys
but no queries, or be empty.
"""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spans: Spans | None = None,
    spans_host: Spans | None = None,
    dropout: float = 0.0,
    window: int = 0,
) -> Tensor:
    """Return softmax attention (B, H, T, K) of q (B, H, T, K) to k and v (B, G, S, K).

    The last query of a stretch sees all keys of the stretch, the query before it all but the last
    key, and so on; surplus keys, where there are fewer queries than keys, come first. Each of the
    G key heads serves H / G adjacent query heads (grouped queries, arXiv 2305.13245).

    Args:
        q: queries.
        k: keys.
        v: values.
        spans: the stretches, on the device; None: each row is one stretch.
        spans_host: the same on the CPU, where reading them needs no wait for a device.
        dropout: probability that a weight is zeroed.
        window: most keys that a query sees, the last of them its own; 0: no limit.
    """
    seed = _seed(q) if dropout else None
    where = (*(spans or (None, None)), *(spans_host or (None, None)))
    return _attention(q, k, v, *where, dropout, seed, window)[0]


@operator("gam_scale::attention_seed", keep="always")
def _seed(like: Tensor) -> Tensor:
    """Draw the seed of dropout's masks, () int64 on the CPU, from the CPU's generator.

    A recomputed block keeps the seed; all masks are a function of it.
    """
    return torch.empty((), dtype=torch.int64).random_(0, None)


@_seed.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu")


def _pairs(
    q: Tensor, k: Tensor, ends: Tensor | None, key_ends: Tensor | None, window: int = 0
) -> int:
    """Count the pairs of a query and a key that it sees, over all heads.

    Where ``ends`` has no data, each row counts as one stretch. The counting is done in numpy, since
    numbers that torch computes while it traces have no values; nor has what it makes of a tensor
    for numpy, unless tracing stops for that moment.
    """
    rows, heads, length, _ = q.shape
    if type(ends) is Tensor and key_ends is not None and not ends.is_meta:
        with unset_fake_temporarily():
            n, m = (np.diff(x.numpy()).astype(np.int64) for x in (ends, key_ends))
    else:
        n, m = (np.full(rows, size) for size in (length, k.shape[2]))
    seen = n * m - n * (n - 1) // 2
    if window:  # query i from the end would see m - i keys: take off those beyond the window
        beyond = np.minimum(n, np.maximum(0, m - window))
        seen = seen - beyond * (m - window) + beyond * (beyond - 1) // 2
    return heads * int(seen.sum())


def _flops(q, k, v, ends, key_ends, ends_host, key_ends_host, *args, **kwargs) -> int:
    """Count two products over all visible pairs; pairs computed and then masked do not count."""
    window = args[2] if len(args) > 2 else 0
    return 2 * 2 * q.shape[-1] * _pairs(q, k, ends_host, key_ends_host, window)


@operator("gam_scale::varlen_attention", keep="dear", flops_of_values=_flops)
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
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and for the backward pass the kernel's log-sum-exps and random state.

    Either of the last two is empty where the kernel has none.
    """
    form = _form(q, k, dropout, window)
    out, lse, rng = _empty(form, q, dropout)
    if form == "flash":
        stretches = Stretches.of(q, k, ends, key_ends, ends_host, key_ends_host)
        return flash(q, k, v, stretches, dropout, seed, window)
    k, v = (_for_each_head(x, q) for x in (k, v))
    if form == "efficient":
        stretches = Stretches.of(q, k, ends, key_ends, ends_host, key_ends_host)
        return *efficient(q, k, v, stretches, dropout, seed), rng
    parts = pieces(q.shape[0], q.shape[2], k.shape[2], ends_host, key_ends_host)
    if form == "blocks":
        with torch.autocast(q.device.type, enabled=False):  # a caller's autocast reaches in here
            blockwise(q, k, v, parts, _weight_dropout(dropout, seed), out, window)
        return out, lse, rng
    for piece in parts:
        assert piece.queries == piece.keys
        at, options = (piece.rows, slice(None), piece.queries), _mask(piece, q)
        out[at], lse[at] = _on_cpu(q[at], k[at], v[at], **options)
    return out, lse, rng


@_attention.register_fake
def _(q, k, v, ends, key_ends, ends_host, key_ends_host, dropout, seed, window=0):
    return _empty(_form(q, k, dropout, window), q, dropout)


def _flops_backward(grad, out, lse, rng, *inputs, **kwargs) -> int:
    """Count five products: the scores again; gradients of weights, queries, keys and values."""
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
    window: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    form, heads = _form(q, k, dropout, window), k.shape[1]
    if form == "flash":
        stretches = Stretches.of(q, k, ends, key_ends, ends_host, key_ends_host)
        return flash_backward(grad, q, k, v, out, lse, rng, stretches, dropout, window)
    k, v = (_for_each_head(x, q) for x in (k, v))
    if form == "efficient":
        stretches = Stretches.of(q, k, ends, key_ends, ends_host, key_ends_host)
        grads = efficient_backward(grad, q, k, v, out, lse, stretches, dropout, seed)
        return _shared(grads, heads)
    parts = pieces(q.shape[0], q.shape[2], k.shape[2], ends_host, key_ends_host)
    grads = empty_tokens(q), empty_tokens(k), empty_tokens(v)
    if form == "blocks":
        with torch.autocast(q.device.type, enabled=False):
            dropped = _weight_dropout(dropout, seed)
            blockwise_backward(grad, q, k, v, parts, dropped, grads, window)
        return _shared(grads, heads)
    for piece in parts:
        at, options = (piece.rows, slice(None), piece.queries), _mask(piece, q)
        tensors = (x[at] for x in (grad, q, k, v, out, lse))
        of_piece = _on_cpu_backward(*tensors, 0.0, options.pop("is_causal"), **options)
        for whole, part in zip(grads, of_piece, strict=True):
            whole[at] = part
    return _shared(grads, heads)


@_attention_backward.register_fake
def _(grad, out, lse, rng, q, k, v, *args):
    return tuple(empty_tokens(x) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    *tensors, dropout, seed, window = inputs
    ctx.save_for_backward(*output, *tensors, seed)
    ctx.dropout, ctx.window = dropout, window
    ctx.set_materialize_grads(False)


def _backward(ctx, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    *tensors, seed = ctx.saved_tensors
    if grad is None:
        return (None,) * 10
    grads = _attention_backward(grad, *tensors, ctx.dropout, seed, ctx.window)
    return *grads, *(None,) * 7


_attention.register_autograd(_backward, setup_context=_setup)


def _form(
    q: Tensor, k: Tensor, dropout: float, window: int
) -> Literal["cpu", "flash", "efficient", "blocks"]:
    """Choose the kernel: torch's for CPUs, its flash or efficient one, or our blocks of queries."""
    if q.is_cuda:
        form = kernel_for(q)
        return "blocks" if form == "efficient" and window else form
    return "blocks" if dropout or window or q.shape[2] != k.shape[2] else "cpu"


def _for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Repeat keys or values (B, G, S, K) for each head of the queries (B, H, T, K)."""
    heads, queries = x.shape[1], q.shape[1]
    return x if heads == queries else x.repeat_interleave(queries // heads, dim=1)


def _shared(grads: tuple[Tensor, Tensor, Tensor], heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the gradients of keys and values over the query heads that each of their heads served."""
    of_queries, of_keys, of_values = grads
    if of_queries.shape[1] == heads:
        return grads
    of_keys, of_values = (x.unflatten(1, (heads, -1)).sum(2) for x in (of_keys, of_values))
    return of_queries, _as_tokens(of_keys), _as_tokens(of_values)


def _as_tokens(x: Tensor) -> Tensor:
    """Copy ``x`` into the memory layout that the operator's outputs are declared with."""
    return empty_tokens(x).copy_(x)


def _empty(form: str, q: Tensor, dropout: float) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the operator's results, not yet filled in."""
    rows, heads, length, _ = q.shape
    shape = {"cpu": (rows, heads, length), "blocks": (0,)}.get(form, (heads, rows * length))
    lse = q.new_empty(shape, dtype=torch.promote_types(q.dtype, torch.float32))
    rng = q.new_empty((2 if form == "flash" and dropout else 0,), dtype=torch.int64)
    return empty_tokens(q), lse, rng


def _mask(piece: Piece, q: Tensor) -> dict:
    """Return the arguments that tell torch's CPU kernel which keys each query sees."""
    if len(piece.lengths) == 1:
        return {"is_causal": True}
    unseen = hidden(piece.lengths, q.device)
    mask = torch.zeros(unseen.shape, dtype=q.dtype).masked_fill_(unseen, -torch.inf)
    return {"is_causal": False, "attn_mask": mask}


def workspace(q: Tensor, k: Tensor, dropout: float, window: int = 0) -> tuple[float, float]:
    """Return the bytes that forward and backward each take beside their inputs and results."""
    tokens = q[0].numel() + k[0].numel()  # of a row
    if _form(q, k, dropout, window) == "blocks":
        repeated = 2.0 * (q.shape[1] // k.shape[1] * k.nbytes) if k.shape[1] < q.shape[1] else 0.0
        forward, backward = block_bytes(q, _for_each_head(k[:1], q), window)
        return forward + repeated, backward + 2.0 * repeated
    return float(q[0].nbytes), float(tokens * q.element_size())


def _weight_dropout(p: float, seed: Tensor | None) -> WeightDropout | None:
    return None if seed is None else WeightDropout(p, int(seed))
