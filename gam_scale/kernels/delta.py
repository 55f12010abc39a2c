"""Operators for the gated delta rule, in flash-linear-attention's kernels."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator
from gam_scale.kernels.stretches import CHUNK, in_one_row, stretches


def fla_delta(
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
    """Compute ``gam_scale.model.memory.delta_rule.delta_memory`` with kernels of fla 0.6.0.

    Args:
        q: (B, T, H, K) queries, scaled, in the dtype of the products: bfloat16, or float32, which
            the kernels multiply in TF32.
        k: (B, T, H, K) keys, and v: (B, T, H, V) values, in the same dtype.
        log_decay: (B, T, H) float32.
        beta: (B, T, H) float32.
        initial: (B, H, K, V) float32 state before the first token.
        starts_document: like ``ends`` and ``ends_host``, see
            :func:`gam_scale.kernels.stretches.stretches`.

    Returns:
        outputs (B, T, H, V) in the dtype of ``q``, and the state after the last token
        (B, H, K, V), float32.
    """
    return _fla_delta(q, k, v, log_decay, beta, initial, starts_document, ends, ends_host)[:2]


def functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Import forward and backward of the installed flash-linear-attention.

    Raises:
        RuntimeError: fla refuses the backward pass. It says so itself, but only once the forward
            pass is compiled, which took 100 s beside other runs.
    """
    from fla import utils

    wrong = utils.TRITON_ABOVE_3_4_0 and not utils.TRITON_ABOVE_3_7_1
    if utils.IS_NVIDIA_HOPPER and wrong and find_spec("tilelang") is None:
        raise RuntimeError(
            "fla's backward pass is wrong on Hopper GPUs with this Triton; expected 3.7.1 or newer"
        )
    from fla.ops.gated_delta_rule.chunk import (
        chunk_gated_delta_rule_bwd,
        chunk_gated_delta_rule_fwd,
    )

    return chunk_gated_delta_rule_fwd, chunk_gated_delta_rule_bwd


def forward_flops(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    """Count the products, which take chunks of C tokens: per token and head three times C K, twice
    C V and three times K V, at two FLOPs each."""
    rows, length, heads, key = q
    value = v[-1]
    return 2 * rows * length * heads * (CHUNK * (3 * key + 2 * value) + 3 * key * value)


def backward_flops(
    grad: torch.Size,
    grad_final: Any,
    q: torch.Size,
    k: torch.Size,
    v: torch.Size,
    *_: Any,
    of_keys: int = 10,
    **__: Any,
) -> int:
    """Count the products of the backward pass: those computed again, and all products' gradients.

    Args:
        of_keys: number of products of size C K; the other arguments are shapes.
    """
    rows, length, heads, key = q
    value = v[-1]
    inside = CHUNK * (of_keys * key + 5 * value + 2 * CHUNK)
    return 2 * rows * length * heads * (inside + 8 * key * value)


@operator("gam_scale::fla_delta", keep="dear", flops=forward_flops)
def _fla_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return outputs, final states and, for backward, log decays' sums and chunks' solved systems.

    No shape depends on the number of stretches, only on (B, T).
    """
    forward, _ = functions()
    rows, length = q.shape[:2]
    cut = stretches(rows, starts_document, ends, ends_host)
    flat = in_one_row(q, k, v, log_decay, beta)
    total, y, solved, final, *_ = forward(
        **dict(zip(("q", "k", "v", "g", "beta"), flat, strict=True)),
        scale=1.0,
        initial_state=cut.states(initial, 0.0),
        output_final_state=True,
        cu_seqlens=cut.ends,
        chunk_indices=cut.chunks,
    )
    y, total, solved = (x.view(rows, length, *x.shape[2:]) for x in (y, total, solved))
    return y.to(q.dtype), final[cut.last], total, solved


@operator("gam_scale::fla_delta_backward", flops=backward_flops)
def _fla_delta_backward(
    grad: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    total: Tensor,
    beta: Tensor,
    solved: Tensor,
    initial: Tensor,
    starts_document: Tensor,
    ends: Tensor,
    ends_host: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, log_decay, beta and the initial state."""
    _, backward = functions()
    rows, length = q.shape[:2]
    cut = stretches(rows, starts_document, ends, ends_host)
    names = ("do", "q", "k", "v", "g", "beta", "A")
    flat = in_one_row(grad, q, k, v, total, beta, solved)
    dq, dk, dv, dbeta, ddecay, dstates, *_ = backward(
        **dict(zip(names, flat, strict=True)),
        scale=1.0,
        initial_state=cut.states(initial, 0.0),
        dht=cut.at_ends(grad_final),
        cu_seqlens=cut.ends,
        chunk_indices=cut.chunks,
    )
    pairs = ((dq, q), (dk, k), (dv, v), (ddecay, total), (dbeta, beta))
    grads = (x.view(rows, length, *x.shape[2:]).to(of.dtype) for x, of in pairs)
    return *grads, cut.gradients(dstates)[0]


@_fla_delta.register_fake
def _(q, k, v, log_decay, beta, initial, starts_document, ends, ends_host):
    heads = q.shape[:3]
    y, solved = q.new_empty((*heads, v.shape[-1])), q.new_empty((*heads, CHUNK))
    return y, initial.new_empty(initial.shape), log_decay.new_empty(heads), solved


@_fla_delta_backward.register_fake
def _(grad, grad_final, q, k, v, total, beta, solved, initial, starts_document, ends, ends_host):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, total, beta, initial))


def keep_inputs(ctx, inputs, output) -> None:
    """Save the tensors of the backward pass: the inputs, but for the log decays their sums, and
    what else the operator returns after outputs and final states (the sums come first there)."""
    q, k, v, _, beta, *states = inputs
    _, _, *kept = output
    ctx.save_for_backward(q, k, v, kept[0], beta, *kept[1:], *states)
    ctx.mark_non_differentiable(*kept)
    ctx.set_materialize_grads(False)


def gradients_by(backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """Return an operator's autograd function: ``backward`` of what :func:`keep_inputs` saved."""

    def gradients(ctx, grad, grad_final, *_):
        saved = ctx.saved_tensors  # read once only: a checkpoint hands them out once
        q, _, v, *_, initial, _, _, _ = saved
        if grad is None:
            grad = q.new_zeros(v.shape)
        if grad_final is None:
            grad_final = torch.zeros_like(initial)
        return *backward(grad, grad_final, *saved), None, None, None

    return gradients


_fla_delta.register_autograd(gradients_by(_fla_delta_backward), setup_context=keep_inputs)
