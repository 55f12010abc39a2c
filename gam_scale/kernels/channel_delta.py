"""Operators for delta rules with a decay per channel, in flash-linear-attention's kernels."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gam_scale.kernels.delta import backward_flops, forward_flops, gradients_by, keep_inputs
from gam_scale.kernels.operator import operator
from gam_scale.kernels.stretches import CHUNK, in_one_row, stretches


def fla_channel_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`gam_scale.kernels.delta.fla_delta` with a decay for each channel of the keys.

    Args:
        q: (B, T, H, K) queries, scaled, in the dtype of the products, like keys and values.
        k: (B, T, H, K) keys, and v: (B, T, H, V) values.
        log_decay: (B, T, H, K) float32.
        beta: float32, either (B, T, H) strengths or (B, T, H, K + V) erase and write gates, which
            are cast to the dtype of ``q`` for the kernels.
        initial: (B, H, K, V) float32 state before the first token.
        starts_document: like ``ends`` and ``ends_host``, see
            :func:`gam_scale.kernels.stretches.stretches`.

    Returns:
        outputs (B, T, H, V) in the dtype of ``q``, and the state after the last token
        (B, H, K, V), float32.
    """
    arguments = (q, k, v, log_decay, beta, initial, starts_document, ends, ends_host)
    return _fla_channel_delta(*arguments)[:2]


class Functions(NamedTuple):
    """The functions of flash-linear-attention that the operators call."""

    kda_forward: Callable[..., Any]
    kda_backward: Callable[..., Any]
    gdn2_forward: Callable[..., Any]
    gdn2_backward: Callable[..., Any]


def functions() -> Functions:
    """Import those of Kimi Delta Attention (one strength a head) and GDN-2 (gates per channel)."""
    from fla.ops.gdn2.chunk_bwd import chunk_gdn2_bwd
    from fla.ops.gdn2.chunk_fwd import chunk_gdn2_fwd
    from fla.ops.kda.chunk_bwd import chunk_kda_bwd
    from fla.ops.kda.chunk_fwd import chunk_kda_fwd

    return Functions(chunk_kda_fwd, chunk_kda_bwd, chunk_gdn2_fwd, chunk_gdn2_bwd)


@operator("gam_scale::fla_channel_delta", keep="dear", flops=forward_flops)
def _fla_channel_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return outputs, final states and, for backward, sums of log decays, and each chunk's products
    of queries with keys and solved system.

    No shape depends on the number of stretches, only on (B, T).
    """
    rows, length = q.shape[:2]
    cut = stretches(rows, starts_document, ends, ends_host)
    names, gates = _gates(q, v, beta)
    flat = in_one_row(q, k, v, log_decay, *gates)
    forward = functions().kda_forward if len(gates) == 1 else functions().gdn2_forward
    y, final, total, pairs, solved, *_ = forward(
        **dict(zip(("q", "k", "v", "g", *names), flat, strict=True)),
        scale=1.0,
        initial_state=cut.states(initial, 0.0),
        output_final_state=True,
        cu_seqlens=cut.ends,
        chunk_indices=cut.chunks,
    )
    of_rows = (x.view(rows, length, *x.shape[2:]) for x in (total, pairs, solved))
    return y.view(v.shape).to(q.dtype), final[cut.last], *of_rows


def _gates(q: Tensor, v: Tensor, beta: Tensor) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    """Return the kernels' names of a token's strengths or gates, and the tensors."""
    if beta.dim() < q.dim():
        return ("beta",), (beta,)
    erase, write = beta.to(q.dtype).split([q.shape[-1], v.shape[-1]], dim=-1)
    return ("b", "w_gate"), (erase, write)


@operator("gam_scale::fla_channel_delta_backward", flops=partial(backward_flops, of_keys=7))
def _fla_channel_delta_backward(
    grad: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    total: Tensor,
    beta: Tensor,
    pairs: Tensor,
    solved: Tensor,
    initial: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, log_decay, beta and the initial state."""
    rows, length = q.shape[:2]
    cut = stretches(rows, starts_document, ends, ends_host)
    names, gates = _gates(q, v, beta)
    flat = in_one_row(grad, q, k, v, total, pairs, solved, *gates)
    backward = functions().kda_backward if len(gates) == 1 else functions().gdn2_backward
    results = backward(
        **dict(zip(("do", "q", "k", "v", "g", "Aqk", "Akk", *names), flat, strict=True)),
        scale=1.0,
        initial_state=cut.states(initial, 0.0),
        dht=cut.at_ends(grad_final),
        cu_seqlens=cut.ends,
        chunk_indices=cut.chunks,
    )
    dq, dk, dv, *dgates = results[: 3 + len(gates)]
    ddecay, dstates = results[3 + len(gates) : 5 + len(gates)]
    dbeta: Any = torch.cat([x.float() for x in dgates], dim=-1) if len(gates) > 1 else dgates[0]
    pairs_of = ((dq, q), (dk, k), (dv, v), (ddecay, total), (dbeta, beta))
    grads = (x.view(of.shape).to(of.dtype) for x, of in pairs_of)
    return *grads, cut.gradients(dstates)[0]


@_fla_channel_delta.register_fake
def _(q, k, v, log_decay, beta, initial, starts_document, ends, ends_host):
    within = (*q.shape[:3], CHUNK)
    y, total = q.new_empty(v.shape), log_decay.new_empty(log_decay.shape)
    pairs, solved = q.new_empty(within), q.new_empty(within)
    return y, initial.new_empty(initial.shape), total, pairs, solved


@_fla_channel_delta_backward.register_fake
def _(grad, grad_final, q, k, v, total, beta, pairs, solved, initial, *_):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, total, beta, initial))


_gradients = gradients_by(_fla_channel_delta_backward)
_fla_channel_delta.register_autograd(_gradients, setup_context=keep_inputs)
