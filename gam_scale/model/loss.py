"""Cross-entropy straight from hidden states: the logits of all tokens never exist at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.model.linear import linear

IGNORE = -100
"""Target id of positions that have no next token; they add nothing to the loss."""

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits held at a time, by device.

On a CPU 16 MiB in fp32, small enough for its outer cache to help. On a GPU 512 MiB, 4,096 tokens of
32,768 logits: each chunk adds to the gradient of the whole head, 12 bytes moved per weight, which
takes an H100 as long as the products of some 400 tokens, and launches 19 kernels (docs/gpu.md).
"""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, rows: int | None = None
) -> Tensor:
    """Sum over valid tokens of ``-log softmax(hidden @ weight.T)[target]``, as an fp32+ scalar.

    Args:
        hidden: (N, d) final hidden states.
        weight: (V, d) output head.
        targets: (N,) int64 ids, :data:`IGNORE` where there is none.
        rows: tokens whose logits are held at a time; None: :func:`chunk_rows`.

    The gradient of the logits is known as soon as they are, so each chunk of tokens computes its
    share of both gradients in the forward pass and drops its logits (the idea of arXiv
    2410.10989); peak memory is a chunk's logits, and no matmul runs twice.
    """
    if rows is None:
        rows = chunk_rows(hidden.shape[0], weight.shape[0], hidden.device.type)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad:
        return _LinearCrossEntropy.apply(hidden, weight, targets, rows)
    dtype = _compute_dtype(hidden)
    w = weight.to(dtype)
    total = hidden.new_zeros((), dtype=_loss_dtype(hidden))
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        log_p = _log_softmax(linear(h.to(dtype), w), total.dtype)
        total += F.nll_loss(log_p, t, ignore_index=IGNORE, reduction="sum")
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, rows: int) -> Tensor:
        dtype = _compute_dtype(hidden)
        w = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=_loss_dtype(hidden))
        total = hidden.new_zeros((), dtype=_loss_dtype(hidden))
        parts = (x.split(rows) for x in (hidden, targets, grad_hidden))
        for h, t, out in zip(*parts, strict=True):
            h = h.to(dtype)
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
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # These buffers have no other reader, so scaling in place spares a copy of each.
        return grad_hidden.mul_(grad_output), grad_weight.mul_(grad_output), None, None


def chunk_rows(tokens: int, vocab: int, device: str) -> int:
    """Tokens whose logits are held at a time, of so many: chunks of one size, a short one is slow.

    Rounded up, so that they may be up to one row more than :data:`CHUNK_ELEMENTS`.
    """
    chunks = max(1, -(-tokens * vocab // CHUNK_ELEMENTS["cpu" if device == "cpu" else "cuda"]))
    return max(1, -(-tokens // chunks))


def _log_softmax(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Over the last dim, in the place of ``logits`` where the dtype allows: one buffer, not two."""
    if logits.dtype != dtype:
        return F.log_softmax(logits, dim=-1, dtype=dtype)
    return torch.log_softmax(logits, -1, out=logits)


def _grad_of_logits(log_p: Tensor, targets: Tensor) -> Tensor:
    """softmax minus one-hot (n, V), in the place of ``log_p``; of no meaning in ignored rows."""
    grad = log_p.exp_()
    return grad.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -torch.ones_like(grad[:, :1]))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _loss_dtype(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32
