"""Attention as a masked softmax over all pairs, in float64: a reference for other forms."""

import torch
from closeness import off
from torch import Tensor

HEADS, WIDTH = 3, 8


def tensors(rows, keys, dtype=torch.float64, seed=0):
    """Return [q, k, v] and a gradient: views (B, H, T, K) of (B, T, 2, H, K), as in blocks.

    ``keys``: number of queries and of keys.
    """
    generator = torch.Generator().manual_seed(seed)

    def make(length, parts):
        x = torch.randn(rows, length, parts, HEADS, WIDTH, generator=generator, dtype=dtype)
        return [part.transpose(1, 2) for part in x.unbind(2)]

    length, n_keys = keys
    (q, grad), (k, v) = make(length, 2), make(n_keys, 2)
    return [x.requires_grad_() for x in (q, k, v)], grad


def all_pairs(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """Attend to the keys that each query sees; ``sees`` is (B, 1, T, S) bool."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v


def same_stretch(rows) -> Tensor:
    """Return the causal mask (B, 1, T, T) within each row's stretches of these lengths."""
    numbers = [torch.repeat_interleave(torch.tensor(lengths)) for lengths in rows]
    number = torch.stack(numbers)
    return (number[:, None, :, None] == number[:, None, None]).tril()


def spans_of(rows, padding: int = 5) -> tuple[Tensor, Tensor]:
    """Return the rows' spans, with as many keys as queries and empty ones at the end."""
    lengths = torch.tensor([0, *(n for row in rows for n in row), *[0] * padding])
    return (lengths.cumsum(0).int(),) * 2


def compare(inputs, grad, found, sees, tolerance):
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = all_pairs(*exact, sees)
    assert off(found, expected) < tolerance
    gradients = torch.autograd.grad(found, inputs, grad)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    for name, a, b in zip("qkv", gradients, wanted, strict=True):
        assert a.dtype == inputs[0].dtype
        # If every query sees one key, weights are 1 and their gradients are rounding errors.
        assert (a.double() - b).abs().max() < tolerance * max(1.0, b.abs().max()), name
