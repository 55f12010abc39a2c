"""Check 2: flash-linear-attention's kernels behind our operators, at the shapes of the runs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from closeness import off, worst  # in tests/, which start.py puts on the path
from packed import results
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.accept.fla import chosen, installed
from benchmarks.accept.one_block import DOCUMENT
from benchmarks.accept.record import Check
from benchmarks.accept.shapes import shipped, sizes
from benchmarks.accept.timing import milliseconds
from gam_scale.config import RunConfig
from gam_scale.kernels.channel_delta import fla_channel_delta
from gam_scale.kernels.delta import fla_delta
from gam_scale.kernels.slot import fla_slot
from gam_scale.model.layout import Layout
from gam_scale.model.memory.delta_rule import delta_memory
from gam_scale.model.mixers.slot import slot_memory

BOUNDS = {torch.bfloat16: 2e-2, torch.float32: 5e-3}
"""Relative bounds against float64 from the same numbers. bf16 keeps 8 bits, and products of float32
in TF32 keep 11; numbers that are multiplied again and again are off by a few of the last."""
AGAIN = 1e-3
"""Relative bound of a second call of the same kernels, whose sums may come in another order."""

Function = Callable[..., tuple[Tensor, Tensor]]
KERNELS: dict[str, tuple[Function, Function]] = {
    "delta": (fla_delta, delta_memory),
    "slot": (fla_slot, slot_memory),
    "kda": (fla_channel_delta, delta_memory),
    "gdn2": (fla_channel_delta, delta_memory),
}


def inputs(kind: str, config: RunConfig) -> dict[str, Tensor]:
    """Return random float32 arguments of this run's heads, by name."""
    (rows, length, width), heads = sizes(config), config.model.memory.n_heads
    size, slots = width // heads, config.model.memory.n_slots
    q, k, v = torch.randn(3, rows, length, heads, size)
    if kind != "slot":
        q, k = (F.normalize(x, dim=-1) for x in (q, k))
        each: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
        each = {"delta": ((), ()), "kda": ((size,), ()), "gdn2": ((size,), (2 * size,))}
        decay, beta = (torch.rand(rows, length, heads, *last) for last in each[kind])
        state = torch.randn(rows, heads, size, size)
        return dict(q=q, k=k, v=v, log_decay=-decay / 10, beta=beta, initial=state)
    gates = torch.rand(rows, length, heads, slots)
    log_decay = -gates / 10 * (gates > 0.7)  # most slots keep what they have
    state, bank = torch.randn(rows, heads, slots, 2 * size), torch.randn(heads, slots, 2 * size)
    return dict(q=q * size**-0.5, k=k, v=v, log_decay=log_decay, initial=state, bank=bank)


def layout(config: RunConfig) -> Layout:
    """Return a layout of packed documents, whose first row goes on from a state."""
    rows, length, _ = sizes(config)
    positions = (torch.arange(length) % DOCUMENT).repeat(rows, 1)
    positions[0, :DOCUMENT] += 1
    return Layout.of(positions)


def compare(check: Check, kind: str, name: str) -> None:
    """Compare a kernel with float64, then with itself under no_grad and recomputed; time both."""
    config = shipped(check, name)
    kernel, portable = KERNELS[kind]
    given = {name: x.to(check.device) for name, x in inputs(kind, config).items()}
    where = layout(config).to(check.device)
    tail = where.stretches.starts_document, where.ends, where.ends_host

    def fused(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return kernel(*leaves, *tail)

    with installed(check):
        for dtype, bound in BOUNDS.items():
            rounded = given | {key: given[key].to(dtype) for key in "qkv"}
            found = results(fused, rounded)
            exact = results(
                lambda *leaves: portable(*leaves, where),
                {key: x.double() for key, x in rounded.items()},
            )
            wrong = {key: off(found[key], exact[key]) for key in found}
            called = str(dtype).removeprefix("torch.")
            for part in ("y", "final"):
                check.figure(f"{part}, {called}", wrong.pop(part), "relative", at_most=bound)
            check.note(f"worst gradient, {called}", max(wrong, key=lambda key: wrong[key]))
            value = worst(wrong.values())
            check.figure(f"that gradient, {called}", value, "relative", at_most=bound)
        rounded = given | {key: given[key].bfloat16() for key in "qkv"}
        found = results(fused, rounded)
        with torch.no_grad():
            value = off(fused(*rounded.values())[0], found["y"])
        check.figure("under no_grad, from that", value, "relative", at_most=AGAIN)
        again = results(lambda *x: checkpoint(fused, *x, use_reentrant=False), rounded)
        value = worst(off(again[key], found[key]) for key in found)
        check.figure("in a checkpoint, from that", value, "relative", at_most=AGAIN)
        for what, function in (
            ("kernel", lambda: results(fused, rounded)),
            ("portable", lambda: results(lambda *x: portable(*x, where), given)),
        ):
            ms = milliseconds(function, check.device)
            check.figure(f"{what}, forward and backward", ms, "ms")


PARTS = {"choice": chosen} | {
    f"{kind} {name}": lambda check, kind=kind, name=name: compare(check, kind, name)
    for kind, name in (
        *((kind, "gam_1b") for kind in KERNELS),
        ("delta", "ctx16k"),
    )
}
