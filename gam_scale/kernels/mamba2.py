"""Operator for Mamba-2's state space dual, in mamba_ssm's Triton kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator

_CHUNK = 256
"""Tokens of a chunk, within which all pairs are multiplied: mamba_ssm's default."""


def functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Import forward and backward of the installed mamba_ssm."""
    from mamba_ssm.ops.triton.ssd_combined import (
        _mamba_chunk_scan_combined_bwd,
        _mamba_chunk_scan_combined_fwd,
    )

    return _mamba_chunk_scan_combined_fwd, _mamba_chunk_scan_combined_bwd


def _products(x: torch.Size, B: torch.Size) -> tuple[int, int, int]:
    """Return the FLOPs over all tokens of one product C B, of pairs with x, and with the states."""
    rows, length, heads, width = x
    groups, states = B[2:]
    each = 2 * rows * length
    channels = heads * width
    return each * _CHUNK * groups * states, each * _CHUNK * channels, each * channels * states


def _flops(x: torch.Size, dt: Any, A: Any, B: torch.Size, *_: Any, **__: Any) -> int:
    """Count C B, pairs with x, and the states' writes and reads."""
    scores, pairs, states = _products(x, B)
    return scores + pairs + 2 * states


def _backward_flops(
    grad: Any,
    grad_final: Any,
    y: Any,
    x: torch.Size,
    dt: Any,
    A: Any,
    B: torch.Size,
    *_: Any,
    **__: Any,
) -> int:
    """Count C B and the states computed again; the gradients of C B's factors, of pairs and of x;
    and the states' gradients: of writes, of reads, of B and of C."""
    scores, pairs, states = _products(x, B)
    return 3 * scores + 2 * pairs + 5 * states


@operator("gam_scale::mamba_ssm_ssd", keep="dear", flops=_flops)
def mamba_ssm_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    documents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``gam_scale.model.mixers.mamba2.ssd`` with kernels of mamba_ssm 2.2 and later.

    The kernels tell documents apart by their numbers, and continue number 0 from the initial state;
    this fits a layout's ``documents``.

    Args:
        x: (B, T, H, P) inputs. They, B and C are in the dtype of the products: bfloat16, or
            float32, which the kernels multiply in TF32.
        dt: (B, T, H) float32 step sizes.
        A: (H,) float32 decay rates, negative.
        B: (B, T, G, N) what each token writes with.
        C: (B, T, G, N) what each token reads with.
        initial: (B, H, P, N) float32 state before the first token.
        documents: (B, T) int32 number of documents started up to each token; None: no resets.

    Returns:
        y (B, T, H, P) in the dtype of ``x``, and the state after the last token, float32.
    """
    forward, _ = functions()
    inputs = (v.contiguous() for v in (x, dt, A, B, C))
    y, *_, final = forward(*inputs, _CHUNK, initial_states=initial.contiguous(), seq_idx=documents)
    return y.contiguous(), final.contiguous()


@operator("gam_scale::mamba_ssm_ssd_backward", flops=_backward_flops)
def _ssd_backward(
    grad: Tensor,
    grad_final: Tensor,
    y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    documents: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B, C and the initial state."""
    _, backward = functions()
    inputs = (v.contiguous() for v in (grad, x, dt, A, B, C, y))
    dx, ddt, dA, dB, dC, _, _, _, dinitial = backward(
        *inputs,
        _CHUNK,
        initial_states=initial.contiguous(),
        dfinal_states=grad_final.contiguous(),
        seq_idx=documents,
    )
    pairs = ((dx, x), (ddt, dt), (dA, A), (dB, B), (dC, C), (dinitial, initial))
    return tuple(grad.to(of.dtype).contiguous() for grad, of in pairs)


@mamba_ssm_ssd.register_fake
def _(x, dt, A, B, C, initial, documents):
    return x.new_empty(x.shape), initial.new_empty(initial.shape)


@_ssd_backward.register_fake
def _(grad, grad_final, y, x, dt, A, B, C, initial, documents):
    return tuple(v.new_empty(v.shape) for v in (x, dt, A, B, C, initial))


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[0], *inputs)


def _gradients(ctx, grad, grad_final):
    y, *inputs = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(y)
    if grad_final is None:
        grad_final = torch.zeros_like(inputs[5])
    return *_ssd_backward(grad, grad_final, y, *inputs), None


mamba_ssm_ssd.register_autograd(_gradients, setup_context=_save)
