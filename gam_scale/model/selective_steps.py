"""Mamba's selective scan over a few tokens, one after another: the recurrence and its gradients.

Each function takes all rows and channels over a few tokens and is straight-line code, of which
inductor makes one loop over rows, states and channels: the states stay in registers over
:data:`STEPS` tokens, and each channel's exponential, products and sums are one pass.

Channels run innermost, (..., N, E).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

STEPS = 8
"""Tokens in one compiled piece: more take longer to compile and keep more states in the cache.

Backward of 8 x 8 tokens, E 1536, N 16 takes 1.30 ns a state on one core; with 16, 1.9.
"""


def pieces(length: int) -> list[slice]:
    """Return the slices that cut ``length`` tokens into pieces; the last may be shorter."""
    return [slice(first, min(first + STEPS, length)) for first in range(0, length, STEPS)]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function``, compiled for whole pieces only: other lengths are rare."""

    def run(*args: Tensor) -> Any:
        whole = args[-1].shape[1] == STEPS
        return (_compiled(function) if whole else function)(*args)

    return run


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def advance(
    h: Tensor, decay_dt: Tensor, A: Tensor, write: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute h_t = exp(dt_t A) h_{t-1} + write_t B_t and y_t = C_t h_t, token by token.

    Args:
        h: (b, N, E) before the first token.
        decay_dt: (b, t, E) step sizes, infinite where the state is forgotten.
        A: (N, E).
        write: (b, t, E), dt x.
        B: (b, t, N).
        C: (b, t, N).

    Returns:
        y (b, t, E), and h after the last token.
    """
    states, _ = _states(h, decay_dt, A, write, B)
    y = [_weighted_sum(C[:, t], h) for t, h in enumerate(states[1:])]
    return torch.stack(y, 1), states[-1]


def retreat(
    h: Tensor,
    g: Tensor,
    grad_A: Tensor,
    grad_y: Tensor,
    dt: Tensor,
    decay_dt: Tensor,
    A: Tensor,
    write: Tensor,
    B: Tensor,
    C: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`advance`, from the last token to the first.

    With a_t = exp(dt_t A), u_t = ``write`` and g_t the gradient of h_t through everything after it:

        g_t += C_t dL/dy_t      dC_t = h_t dL/dy_t      dB_t = g_t u_t      du_t = B_t g_t
        e_t = g_t a_t h_{t-1}   (the gradient of dt_t A, elementwise)
        ddt_t = sum_N A e_t     dA = sum_t dt_t e_t     g_{t-1} = g_t a_t

    Args:
        h: (b, N, E) before the first token.
        g: (b, N, E), the gradient of h after the last token.
        grad_A: (b, N, E), what later tokens have added to A's gradient.
        grad_y: (b, t, E).
        dt: (b, t, E), finite, where ``decay_dt`` may not be.
        decay_dt, A, write, B, C: as in :func:`advance`.

    Returns:
        The gradients of h and A (b, N, E), of write and dt (b, t, E), of B and C (b, t, N).
    """
    states, decays = _states(h, decay_dt, A, write, B)
    ones = A.new_ones(()).expand(h.shape[:2])
    grads = []
    for t in reversed(range(write.shape[1])):
        g = torch.addcmul(g, grad_y[:, t, None], C[:, t, :, None])
        grad_C = _weighted_sum(grad_y[:, t], states[t + 1].mT)
        grad_B = _weighted_sum(write[:, t], g.mT)
        grad_write = _weighted_sum(B[:, t], g)
        g = g * decays[t]
        exponent = g * states[t]
        grad_A = torch.addcmul(grad_A, exponent, dt[:, t, None])
        grads.append((grad_write, _weighted_sum(ones, exponent * A), grad_B, grad_C))
    write, dt, B, C = (torch.stack(each[::-1], 1) for each in zip(*grads, strict=True))
    return g, grad_A, write, dt, B, C


def _states(
    h: Tensor, decay_dt: Tensor, A: Tensor, write: Tensor, B: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states before the first token and after each, and the tokens' decays."""
    states, decays = [h], []
    for t in range(write.shape[1]):
        decays.append(torch.exp(decay_dt[:, t, None] * A))
        states.append(decays[-1] * states[-1] + write[:, t, None] * B[:, t, :, None])
    return states, decays


def _weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    """Sum x by weights: (b, k), (b, k, m) -> (b, m). Inductor fuses the factors into it."""
    return (weights.unsqueeze(-1) * x).sum(1)
