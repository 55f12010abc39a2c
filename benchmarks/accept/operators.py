"""Check 5: the parts of a block that no library has, each alone at several sizes."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.accept.record import Check
from benchmarks.accept.timing import milliseconds
from gam_scale.model.loss import linear_cross_entropy
from gam_scale.model.memory.recurrence import linear_scan
from gam_scale.model.memory.solve import solve_unit_lower
from gam_scale.model.selective_scan import selective_scan

CHUNK = 64


def both_ways(check: Check, name: str, function: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Time a forward pass, and a forward and backward pass."""
    leaves = tuple(x.to(check.device).requires_grad_() for x in leaves)
    with torch.no_grad():
        grad = torch.randn_like(function(*leaves))
        check.figure(
            f"{name}, forward", milliseconds(lambda: function(*leaves), check.device), "ms"
        )

    def step() -> None:
        torch.autograd.grad(function(*leaves), leaves, grad)

    check.figure(f"{name}, and backward", milliseconds(step, check.device), "ms")


def solve(check: Check) -> None:
    """Time solving the systems of delta memories: one a head and chunk, K + V right-hand sides."""
    for heads, length, width in check.pick(
        ((24, 4096, 128), (96, 4096, 128), (16, 16_384, 64)), ((2, 128, 8),)
    ):
        count = heads * length // CHUNK
        system = torch.randn(count, CHUNK, CHUNK).tril(-1) / CHUNK
        right = torch.randn(count, CHUNK, 2 * width)
        both_ways(check, f"{count} systems, {2 * width} columns", solve_unit_lower, system, right)


def chunk_scan(check: Check) -> None:
    """Time the scan over a sequence's chunks, with delta's matrices and with phase's factors."""
    for heads, length, width in check.pick(
        ((24, 4096, 128), (16, 16_384, 64), (16, 65_536, 64)), ((2, 256, 8),)
    ):
        shape = (1, heads, length // CHUNK, width)
        write, initial = torch.randn(*shape, width), torch.zeros(1, heads, width, width)
        for name, decay in (
            ("matrices", torch.randn(*shape, width) / width),
            ("factors", torch.rand(*shape, 1)),
        ):
            what = f"{heads} heads of {width}, T {length:,}, {name}"
            both_ways(check, what, linear_scan, decay, write, initial)


def mamba_scan(check: Check) -> None:
    """Time the portable selective scan, with 16 states a channel."""
    for rows, length, width in check.pick(((2, 4096, 3072), (8, 1024, 1536)), ((1, 64, 16),)):
        shape = (rows, length)
        leaves = [torch.randn(*shape, width), torch.rand(*shape, width) / 10]
        leaves += [-torch.rand(width, 16), *(torch.randn(*shape, 16) for _ in range(2))]
        leaves += [torch.ones(width)]
        what = f"{rows} rows, T {length:,}, width {width}"
        both_ways(check, what, lambda *x: selective_scan(*x)[0], *leaves)


def loss(check: Check) -> None:
    """Time the head's cross-entropy in bf16, forward and backward together, logits in chunks."""
    for tokens, width, vocab in check.pick(
        ((8192, 1536, 32_768), (16_384, 1024, 32_768), (8192, 1536, 131_072)), ((64, 16, 100),)
    ):
        hidden = torch.randn(tokens, width, device=check.device, requires_grad=True)
        weight = torch.randn(vocab, width, device=check.device, requires_grad=True)
        targets = torch.randint(vocab, (tokens,), device=check.device)

        def step(hidden: Tensor = hidden, weight: Tensor = weight, to: Tensor = targets) -> None:
            with torch.autocast(check.device.type, torch.bfloat16):
                total = linear_cross_entropy(hidden, weight, to)
            torch.autograd.grad(total / len(to), (hidden, weight))

        ms = milliseconds(step, check.device)
        check.figure(f"{tokens:,} tokens, width {width}, vocabulary {vocab:,}", ms, "ms")
        rate = 6 * tokens * width * vocab / ms / 1e9
        check.figure(f"the same, rate of its products ({vocab:,})", rate, "TFLOP/s")


PARTS = {"solve": solve, "chunk scan": chunk_scan, "mamba scan": mamba_scan, "loss": loss}
