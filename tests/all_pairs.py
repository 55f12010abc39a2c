"""Attention as masked softmax over all pairs, in float64: what forms of it are measured against."""

import torch
from closeness import off
from torch import Tensor

HEADS, WIDTH = 3, 8


def tensors(rows, keys, dtype=torch.float64, seed=0):
    """q, k, v and a gradient as blocks have them: views (B, H, T, K) of (B, T, 3, H, K)."""
    generator = torch.Generator().manual_seed(seed)

    def make(length, parts):
        x = torch.randn(rows, length, parts, HEADS, WIDTH, generator=generator, dtype=dtype)
        return [part.transpose(1, 2) for part in x.unbind(2)]

    length, n_keys = keys
    (q, grad), (k, v) = make(length, 2), make(n_keys, 2)
    return [x.requires_grad_() for x in (q, k, v)], grad


def all_pairs(q: Tensor, k: Tensor, v: Tensor, sees: Tensor) -> Tensor:
    """Softmax over the keys that each query sees, (B, 1, T, S) bool."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v


def same_stretch(rows) -> Tensor:
    numbers = [torch.repeat_interleave(torch.tensor(lengths)) for lengths in rows]
    number = torch.stack(numbers)
    return (number[:, None, :, None] == number[:, None, None]).tril()


def spans_of(rows, padding: int = 5) -> tuple[Tensor, Tensor]:
    """Of as many keys as queries, with empty stretches at the end."""
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
        # Where every query sees one key, weights are 1 and have no gradient but rounding's.
        assert (a.double() - b).abs().max() < tolerance * max(1.0, b.abs().max()), name
