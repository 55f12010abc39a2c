"""Cross-entropy straight from hidden states: the logits of all tokens never exist at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.model.linear import linear

IGNORE = -100
"""Target id of positions that have no next token; they add nothing to the loss."""

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits held at a time, by device.

On a CPU, 16 MiB in fp32, small enough for its outer cache to help. On a GPU, 512 MiB, 4,096 tokens
of 32,768 logits: each chunk adds to the gradient of the whole head, which moves 12 bytes per weight
and takes an H100 as long as the products of some 400 tokens, and launches 19 kernels (docs/gpu.md).
"""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: int | None = None,
    *,
    softcap: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum ``-log softmax(logits)[target]`` over valid tokens, to an fp32 or fp64 scalar.

    Logits are ``hidden @ weight.T``, capped as in :func:`capped`.

    Args:
        hidden: (N, d) final hidden states.
        weight: (V, d) output head.
        targets: (N,) int64 ids, :data:`IGNORE` where there is none.
        rows: tokens whose logits are held at a time; None: :func:`chunk_rows`.
        softcap: soft bound of the logits; 0: none.
        z_loss: weight of ``logsumexp(logits)^2`` of each valid token, which is minimised as well
            (arXiv 2204.02311, section 5). It adds to the gradient but not to the value, so that
            losses are comparable between runs with and without it, and with evaluation.

    The gradient of the logits is known as soon as the logits are, so the forward pass computes each
    chunk's share of both gradients and then drops the chunk's logits (the idea of arXiv
    2410.10989). Peak memory is one chunk's logits, twice with a cap, and no matmul runs twice.
    """
    if rows is None:
        rows = chunk_rows(hidden.shape[0], weight.shape[0], hidden.device.type)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad:
        return _LinearCrossEntropy.apply(hidden, weight, targets, rows, softcap, z_loss)
    dtype = _compute_dtype(hidden)
    w = weight.to(dtype)
    total = hidden.new_zeros((), dtype=_loss_dtype(hidden))
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        log_p = _log_softmax(_capped(linear(h.to(dtype), w), softcap, total.dtype), total.dtype)
        total += F.nll_loss(log_p, t, ignore_index=IGNORE, reduction="sum")
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: int,
        softcap: float,
        z_loss: float,
    ) -> Tensor:
        dtype = _compute_dtype(hidden)
        w = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_loss_dtype(hidden))
        total = hidden.new_zeros((), dtype=_loss_dtype(hidden))
        parts = (x.split(rows) for x in (hidden, targets, grad_hidden))
        for h, t, out in zip(*parts, strict=True):
            h = h.to(dtype)
            if softcap or z_loss:
                grad = _other_gradient(linear(h, w), t, softcap, z_loss, total).to(dtype)
            else:
                log_p = _log_softmax(linear(h, w), total.dtype)  # (n, V)
                total += F.nll_loss(log_p, t, ignore_index=IGNORE, reduction="sum")
                grad = _grad_of_logits(log_p, t).to(dtype)
            out.copy_(linear(grad, w.t()))
            # Ignored rows are cleared here, in (n, d), at a fraction of a pass over (n, V).
            ignored = (t == IGNORE).unsqueeze(1)
            out.masked_fill_(ignored, 0.0)
            grad_weight += linear(grad.t(), h.masked_fill(ignored, 0.0).t())
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # These buffers have no other reader, so scaling in place spares a copy of each.
        scaled = grad_hidden.mul_(grad_output), grad_weight.mul_(grad_output)
        return *scaled, None, None, None, None


def capped(logits: Tensor, softcap: float) -> Tensor:
    """Return ``softcap * tanh(logits / softcap)`` (arXiv 2408.00118); with 0, ``logits``.

    The result is in float32 at least, since bfloat16 has steps of 0.125 at 30.
    """
    if not softcap:
        return logits
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.tanh(wide / softcap) * softcap


def chunk_rows(tokens: int, vocab: int, device: str) -> int:
    """Return how many of ``tokens`` have their logits held at a time, in chunks of one size.

    A short last chunk would be slow. The number is rounded up, so that a chunk may hold up to one
    row more than :data:`CHUNK_ELEMENTS`.
    """
    chunks = max(1, -(-tokens * vocab // CHUNK_ELEMENTS["cpu" if device == "cpu" else "cuda"]))
    return max(1, -(-tokens // chunks))


def _capped(logits: Tensor, softcap: float, dtype: torch.dtype) -> Tensor:
    """Do as :func:`capped`, in the memory of ``logits`` where the dtype allows."""
    if not softcap:
        return logits
    return logits.to(dtype).div_(softcap).tanh_().mul_(softcap)


def _other_gradient(
    raw: Tensor, targets: Tensor, softcap: float, z_loss: float, total: Tensor
) -> Tensor:
    """Return the gradient of raw logits (n, V) with a cap or z-loss; add the loss to ``total``."""
    logits = _capped(raw, softcap, total.dtype)
    first = logits[:, :1].to(total.dtype, copy=True)  # the next line overwrites it
    log_p = _log_softmax(logits, total.dtype)
    total += F.nll_loss(log_p, targets, ignore_index=IGNORE, reduction="sum")
    log_z = first - log_p[:, :1]
    # The capped logits are log_p + log_z, and d capped / d raw is 1 - (capped / softcap)^2.
    slope = log_p + log_z if softcap else None
    if slope is not None:
        torch.addcmul(slope.new_ones(()), slope, slope, value=-(softcap**-2), out=slope)
    grad = _grad_of_logits(log_p, targets, 1.0 + 2.0 * z_loss * log_z if z_loss else None)
    return grad if slope is None else grad.mul_(slope)


def _log_softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return log-softmax over the last dim, in the memory of ``logits`` where the dtype allows."""
    if logits.dtype != dtype:
        return F.log_softmax(logits, dim=-1, dtype=dtype)
    return torch.log_softmax(logits, -1, out=logits)


def _grad_of_logits(log_p: Tensor, targets: Tensor, times: Tensor | None = None) -> Tensor:
    """Return ``times * softmax - one_hot`` (n, V), in the memory of ``log_p``.

    ``times`` is (n, 1); None: 1. Ignored rows hold no meaningful numbers.
    """
    grad = log_p.exp_()
    if times is not None:
        grad *= times
    return grad.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -torch.ones_like(grad[:, :1]))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _loss_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
