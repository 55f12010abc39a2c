"""Check 1: every memory's outputs, final states and gradients against float64, on this device.

The memories of gam blocks, and Mamba-2's, are compared with the recurrences, one token at a time,
that their tests use. Mamba's scan is compared with itself in float64 on the CPU, where the same
tests compare it with a recurrence. The first row is packed with documents: one starts in the middle
of a chunk, one at the edge of a chunk, one is a single token. The second row goes on from a state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import recurrences  # in tests/, which start.py puts on the path
import torch
import torch.nn.functional as F
from closeness import off
from torch import Tensor

from benchmarks.accept.record import Check
from gam_scale.model.layout import Layout
from gam_scale.model.memory.delta_rule import delta_memory
from gam_scale.model.memory.pairs import MIN_LOG_DECAY
from gam_scale.model.mixers.mamba2 import ssd
from gam_scale.model.mixers.phase import phase_memory
from gam_scale.model.mixers.scan import scan_memory
from gam_scale.model.mixers.slot import slot_memory
from gam_scale.model.selective_scan import selective_scan

ROWS, HEADS = 2, 2
FP32 = 3e-5
"""Relative bound of a whole tensor's error: ten times the largest on a CPU at a GPU's sizes
(3.3e-6), since sums come in another order. Products in TF32 by mistake would be off by about
1e-3."""

Function = Callable[..., tuple[Tensor, Tensor]]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def decays(*shape: int, lowest: float) -> Tensor:
    """Return logarithms of decays, of every size, a third of them exactly 0."""
    log_decay = -torch.exp(8 * torch.rand(shape, dtype=torch.float64) - 5).clamp(max=-lowest)
    return log_decay.masked_fill(torch.rand(shape) < 0.33, 0.0)


def inputs(kind: str, length: int, width: int) -> list[Tensor]:
    """Return random float64 arguments: ``width`` channels a head, as many slots or states, ..."""
    torch.manual_seed(0)
    heads = (ROWS, length, HEADS, width)
    if kind == "slot":
        q, k, v = (normal(*heads) for _ in range(3))
        bank = normal(HEADS, width, 2 * width)
        decay = decays(*heads, lowest=MIN_LOG_DECAY)
        return [q * width**-0.5, k, v, decay, normal(ROWS, *bank.shape), bank]
    if kind == "delta":
        q, k, v = (normal(*heads) for _ in range(3))
        gates = decays(*heads[:3], lowest=-30.0), torch.rand(heads[:3], dtype=torch.float64)
        return [q, F.normalize(k, dim=-1), v, *gates, normal(ROWS, HEADS, width, width)]
    if kind == "phase":
        q, k, v = (F.normalize(normal(*heads), dim=-1) for _ in range(3))
        return [q, k, v, decays(*heads[:3], lowest=-30.0), normal(ROWS, HEADS, width // 2, width)]
    if kind == "scan":
        decay = decays(ROWS, length, width, lowest=-30.0)
        return [normal(ROWS, length, width), decay, normal(ROWS, width)]
    if kind == "mamba2":
        dt = F.softplus(normal(*heads[:3]) - 3)
        B, C = (normal(ROWS, length, 1, width) for _ in range(2))
        return [
            normal(*heads),
            dt,
            -torch.exp(normal(HEADS)),
            B,
            C,
            normal(ROWS, *heads[2:], width),
        ]
    states = 16
    x, dt = normal(ROWS, length, width), F.softplus(normal(ROWS, length, width) - 3)
    A = -torch.exp(normal(width, states))
    B, C = (normal(ROWS, length, states) for _ in range(2))
    return [x, dt, A, B, C, normal(width), normal(ROWS, width, states)]


def packed(length: int) -> Layout:
    """Return a layout with documents in the first row; the second row goes on from a state."""
    first = torch.arange(length)
    for start in (length // 3, min(length - 2, 64), length - 1):
        first[start:] = torch.arange(length - start)
    return Layout.of(torch.stack([first, torch.arange(length) + 7]))


def results(function: Function, given: list[Tensor], where: Layout) -> list[Tensor]:
    """Return output, final state, and each input's gradient for fixed random cotangents."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    outputs = function(*leaves, where)
    torch.manual_seed(1)
    loss: Any = sum((y * normal(*y.shape).to(y)).sum() for y in outputs)
    return [x.detach() for x in (*outputs, *torch.autograd.grad(loss, leaves))]


def mamba(*given: Any) -> tuple[Tensor, Tensor]:
    """Call selective_scan with arguments in the order of the other memories."""
    x, dt, A, B, C, D, state, where = given
    return selective_scan(x, dt, A, B, C, D, where.starts, state)


FUNCTIONS: dict[str, Function] = {
    "delta": delta_memory,
    "slot": slot_memory,
    "phase": phase_memory,
    "scan": scan_memory,
    "mamba": mamba,
    "mamba2": ssd,
}


def oracle(kind: str, *given: Any) -> tuple[Tensor, Tensor]:
    """Return what the memory should give."""
    if kind == "mamba":
        return mamba(*given)
    *inputs, where = given
    return getattr(recurrences, kind)(*inputs, where.positions)


def compare(check: Check, kind: str) -> None:
    """Compare one memory in float32 with float64."""
    length, width = check.pick((300, 128), (70, 8))
    given, where = inputs(kind, length, width), packed(length)
    there = torch.device("cpu") if kind == "mamba" else check.device
    wanted = results(partial(oracle, kind), [x.to(there) for x in given], where.to(there))
    single = [x.to(check.device, torch.float32) for x in given]
    found = results(FUNCTIONS[kind], single, where.to(check.device))
    wrong = [off(x.cpu(), y.cpu()) for x, y in zip(found, wanted, strict=True)]
    check.figure("output", wrong[0], "relative", at_most=FP32)
    check.figure("final state", wrong[1], "relative", at_most=FP32)
    check.figure("largest of gradients", max(wrong[2:]), "relative", at_most=FP32)


PARTS = {kind: partial(compare, kind=kind) for kind in FUNCTIONS}
