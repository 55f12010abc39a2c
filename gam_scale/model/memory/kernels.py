"""Memories in flash-linear-attention's GPU kernels, where they are installed and agree."""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.model.layout import Layout

logger = logging.getLogger("gam_scale")

TOLERANCE = 1e-2
"""Relative: kernels multiply in TF32, which keeps 10 bits, and add up in float32."""

Kernel = Callable[..., tuple[Tensor, Tensor]]
"""Arguments and results as the portable form it stands for, without context."""


def delta_kernel(device: torch.device, portable: Kernel) -> Kernel | None:
    """The kernel for this device if it gives what ``delta_memory`` gives, else None."""
    return _checked_delta(device, portable) if device.type == "cuda" else None


def slot_kernel(device: torch.device, portable: Kernel) -> Kernel | None:
    """The kernel for this device if it gives what ``slot_memory`` gives, else None."""
    return _checked_slot(device, portable) if device.type == "cuda" else None


@functools.cache
def _checked_delta(device: torch.device, portable: Kernel) -> Kernel | None:
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None
    kernel = functools.partial(packed_delta, chunk_gated_delta_rule)
    return _if_equal("delta rule", kernel, portable, delta_inputs(), device)


@functools.cache
def _checked_slot(device: torch.device, portable: Kernel) -> Kernel | None:
    try:
        from fla.ops.gsa import chunk_gsa
    except ImportError:
        return None
    kernel = functools.partial(packed_slot, chunk_gsa)
    return _if_equal("slot attention", kernel, portable, slot_inputs(), device)


def _if_equal(
    name: str, kernel: Kernel, portable: Kernel, inputs: list[Tensor], device: torch.device
) -> Kernel | None:
    kernel = torch.compiler.disable(kernel)
    off = largest_difference(kernel, portable, inputs, device)
    if not off <= TOLERANCE:  # NaN is neither
        logger.warning("flash-linear-attention's %s is off by %.1e here: not used", name, off)
        return None
    return kernel


class Stretches(NamedTuple):
    """Documents of several rows as stretches of one row, each with its own first state."""

    ends: Tensor  # (stretches + 1,), from 0
    row: Tensor  # (stretches,), the row that each is of
    fresh: Tensor  # (stretches,) bool: a document's start, not a row's that goes on
    last: Tensor  # (rows,), each row's last stretch


def stretches(layout: Layout) -> Stretches:
    """What the tokens of ``layout`` are made of."""
    rows, length = layout.rows, layout.length
    starts = torch.zeros(rows, length, dtype=torch.bool, device=layout.positions.device)
    if layout.starts is not None:
        starts |= layout.starts
    fresh = starts.clone()
    starts[:, 0] = True
    first = starts.flatten().nonzero().squeeze(1)  # waits for the device
    ends = torch.cat([first, first.new_tensor([rows * length])])
    return Stretches(ends, first // length, fresh.flatten()[first], starts.sum(1).cumsum(0) - 1)


def packed_delta(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """Call ``chunk_gated_delta_rule``, which takes documents as stretches of one row."""
    cut = stretches(layout)
    states = torch.where(cut.fresh.view(-1, 1, 1, 1), 0.0, initial[cut.row])
    flat = [x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, log_decay, beta)]
    y, final = kernel(
        *flat, scale=1.0, initial_state=states, output_final_state=True, cu_seqlens=cut.ends
    )
    return y.view(*q.shape[:-1], v.shape[-1]).to(q.dtype), final[cut.last].to(initial.dtype)


def packed_slot(
    kernel: Callable[..., tuple[Tensor, tuple[Tensor, Tensor]]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    bank: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor]:
    """Call ``chunk_gsa``, which wants the share that is written and two states, keys by column."""
    cut, width = stretches(layout), q.shape[-1]
    rows = torch.where(cut.fresh.view(-1, 1, 1, 1), bank, initial[cut.row])  # (N, H, M, K + V)
    states = rows[..., :width].mT.contiguous(), rows[..., width:].contiguous()
    share = -torch.expm1(log_decay)
    flat = [x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, share, log_decay)]
    y, final = kernel(
        *flat, scale=1.0, initial_state=states, output_final_state=True, cu_seqlens=cut.ends
    )
    final = torch.cat([final[0].mT, final[1]], dim=-1)[cut.last].to(initial.dtype)
    return y.view(*q.shape[:-1], v.shape[-1]).to(q.dtype), final


ROWS, LENGTH, HEADS, WIDTH, SLOTS = 2, 200, 2, 32, 16
"""Of the inputs that a kernel is compared on."""


def delta_inputs() -> list[Tensor]:
    """Random arguments of ``delta_memory``, positions aside."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, ROWS, LENGTH, HEADS, WIDTH, generator=generator)
    gates = torch.rand(2, ROWS, LENGTH, HEADS, generator=generator)
    state = torch.randn(ROWS, HEADS, WIDTH, WIDTH, generator=generator)
    return [q, F.normalize(k, dim=-1), v, -gates[0], gates[1], state]


def slot_inputs() -> list[Tensor]:
    """Random arguments of ``slot_memory``, positions aside; some slots are not written to."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, ROWS, LENGTH, HEADS, WIDTH, generator=generator)
    gates = torch.rand(ROWS, LENGTH, HEADS, SLOTS, generator=generator)
    state = torch.randn(ROWS, HEADS, SLOTS, 2 * WIDTH, generator=generator)
    bank = torch.randn(HEADS, SLOTS, 2 * WIDTH, generator=generator)
    return [q * WIDTH**-0.5, k, v, -gates * (gates > 0.3), state, bank]


def largest_difference(
    one: Kernel, other: Kernel, inputs: list[Tensor], device: torch.device
) -> float:
    """Relative, of output, final state and every gradient on packed documents."""
    positions = torch.arange(LENGTH).repeat(ROWS, 1)
    positions[0, 70:] -= 70  # a document starts within the first row; the second goes on
    positions[1] += 5
    results = []
    for function in (one, other):
        leaves = [x.to(device, copy=True).requires_grad_() for x in inputs]
        outputs = function(*leaves, layout=Layout.of(positions).to(device))
        total = sum(output.square().sum() for output in outputs)
        results.append([x.detach() for x in (*outputs, *torch.autograd.grad(total, leaves))])
    differences = [(a - b).norm() / b.norm() for a, b in zip(*results, strict=True)]
    return float(torch.stack(differences).max())
