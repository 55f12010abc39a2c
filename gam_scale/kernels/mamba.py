"""Operator for Mamba's selective scan, in mamba_ssm's kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator

_KERNEL_CHUNK = 2048
"""Tokens between the states that the kernel keeps for its backward pass."""

_NOTHING_LEFT = 128.0
"""Exponent that erases a state: exp(-128) is 0 in float32, whose smallest number is exp(-103.3)."""


def mamba_ssm_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    starts: Tensor | None = None,
) -> Tensor:
    """Compute ``gam_scale.model.selective_scan.selective_scan`` from a state of zero.

    The kernel has no resets. A document's first token therefore gets a step so long
    (:func:`_forgetting`) that the state before it is multiplied by exactly 0, and an input so much
    smaller that dt x stays the same.

    Args:
        x: (batch, T, E) inputs.
        dt: (batch, T, E) step sizes, positive.
        A: (E, N) decay rates, negative.
        B: (batch, T, N) what each token writes with.
        C: (batch, T, N) what each token reads with.
        D: (E,) weight of the skip connection.
        starts: (batch, T) bool, the first tokens of documents; None: nothing resets.

    Returns:
        (batch, T, E) in the dtype of ``x``.
    """
    dtype = x.dtype
    x, dt, A, B, C, D = (value.float() for value in (x, dt, A, B, C, D))
    skip = D * x
    if starts is not None:
        at_start, long = starts.unsqueeze(-1), _forgetting(A.detach())
        x = torch.where(at_start, x * (dt / long), x)
        dt = torch.where(at_start, long, dt)
    return (_scan(x, dt, A, B, C)[0] + skip).to(dtype)


def _forgetting(A: Tensor) -> Tensor:
    """Return step sizes (E,) that erase each channel's states: exp(step A) is 0 in float32.

    Rates A closer to 0 than -1e-20, which would keep a state for ever, count as -1e-20. Steps are
    no longer than that needs: when the kernel sums A's gradient, it multiplies them by a difference
    that is 0 but for rounding. They are powers of two, so that dividing by them rounds nothing.
    """
    slowest = A.abs().amin(dim=1).clamp(min=1e-20)
    return torch.exp2(torch.ceil(torch.log2(_NOTHING_LEFT / slowest)))


def functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Import forward and backward of the installed mamba_ssm."""
    import mamba_ssm  # noqa: F401 (its extension alone may be another package's)
    import selective_scan_cuda

    return selective_scan_cuda.fwd, selective_scan_cuda.bwd


def _flops(x: torch.Size, dt: torch.Size, A: torch.Size, *_: Any, **__: Any) -> int:
    """Count 7 FLOPs per token, channel and state: decay (2), its product and sum, write, read."""
    rows, length, width = x
    return 7 * rows * length * width * A[-1]


def _backward_flops(grad: torch.Size, *shapes: Any, **options: Any) -> int:
    """Count the forward pass once more, and two products for each of its own."""
    return 3 * _flops(*shapes, **options)


# Both operators take and return time as the last dimension but one, like the portable scan; inside
# they make what the kernel takes, time innermost and a group dimension in B and C.
@operator("gam_scale::mamba_ssm_scan", keep="dear", flops=_flops)
def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Return y without D x (batch, T, E), and the kernel's states (batch, E, chunks, 2 N)."""
    forward, _ = functions()
    u, delta, b, c = _time_innermost(x, dt, B, C)
    y, states, *_ = forward(u, delta, A.contiguous(), b, c, None, None, None, False)
    return y.mT.contiguous(), states


@operator("gam_scale::mamba_ssm_scan_backward", flops=_backward_flops)
def _scan_backward(
    grad: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, dt, A, B and C."""
    _, backward = functions()
    u, delta, b, c = _time_innermost(x, dt, B, C)
    dy = grad.mT.contiguous()
    arguments = (u, delta, A.contiguous(), b, c, None, None, None, dy, states, None, None)
    du, ddelta, dA, db, dc, *_ = backward(*arguments, False, False)
    outer = (du.mT, ddelta.mT, dA, db.squeeze(1).mT, dc.squeeze(1).mT)
    return tuple(value.contiguous() for value in outer)


def _time_innermost(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> list[Tensor]:
    of_channels = [value.mT.contiguous() for value in (x, dt)]
    return of_channels + [value.mT.contiguous().unsqueeze(1) for value in (B, C)]


@_scan.register_fake
def _(x, dt, A, B, C):
    rows, length, width = x.shape
    chunks = -(-length // _KERNEL_CHUNK)
    return x.new_empty(x.shape), x.new_empty((rows, width, chunks, 2 * A.shape[1]))


@_scan_backward.register_fake
def _(grad, x, dt, A, B, C, states):
    return tuple(value.new_empty(value.shape) for value in (x, dt, A, B, C))


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, grad, _):
    return _scan_backward(grad, *ctx.saved_tensors)


_scan.register_autograd(_gradients, setup_context=_save)
