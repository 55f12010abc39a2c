"""The delta rule in flash-linear-attention's GPU kernels, where they are installed and agree."""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger("gam_scale")

TOLERANCE = 1e-2
"""Relative: kernels multiply in TF32, which keeps 10 bits, and add up in float32."""

DeltaKernel = Callable[..., tuple[Tensor, Tensor]]
"""Arguments and results as :func:`gam_scale.model.memory.delta.delta_memory`, without context."""


def delta_kernel(device: torch.device, portable: DeltaKernel) -> DeltaKernel | None:
    """The kernel for this device if it gives what ``portable`` gives, else None."""
    return _checked_kernel(device, portable) if device.type == "cuda" else None


@functools.cache
def _checked_kernel(device: torch.device, portable: DeltaKernel) -> DeltaKernel | None:
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None
    kernel = torch.compiler.disable(functools.partial(packed_delta, chunk_gated_delta_rule))
    off = largest_difference(kernel, portable, device)
    if not off <= TOLERANCE:  # NaN is neither
        logger.warning(
            "flash-linear-attention's delta rule is off by %.1e here and is not used", off
        )
        return None
    return kernel


def packed_delta(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    positions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Call a kernel that takes documents as stretches of one row, each with its own first state."""
    rows, length = q.shape[:2]
    starts = torch.zeros(rows, length, dtype=torch.bool, device=q.device)
    if positions is not None:
        starts |= positions == 0
    fresh = starts.clone()
    starts[:, 0] = True
    first = starts.flatten().nonzero().squeeze(1)  # waits for the device
    ends = torch.cat([first, first.new_tensor([rows * length])])
    row = first // length
    states = torch.where(fresh.flatten()[first].view(-1, 1, 1, 1), 0.0, initial[row])
    flat = [x.flatten(0, 1).unsqueeze(0) for x in (q, k, v, log_decay, beta)]
    y, final = kernel(
        *flat, scale=1.0, initial_state=states, output_final_state=True, cu_seqlens=ends
    )
    last = starts.sum(1).cumsum(0) - 1  # each row's last stretch
    return y.view(*q.shape[:-1], v.shape[-1]).to(q.dtype), final[last].to(initial.dtype)


def largest_difference(one: DeltaKernel, other: DeltaKernel, device: torch.device) -> float:
    """Relative, of output, final state and every gradient on random packed documents."""
    generator = torch.Generator().manual_seed(0)
    rows, length, heads, width = 2, 200, 2, 32
    q, k, v = torch.randn(3, rows, length, heads, width, generator=generator)
    gates = torch.rand(2, rows, length, heads, generator=generator)
    state = torch.randn(rows, heads, width, width, generator=generator)
    inputs = [q, F.normalize(k, dim=-1), v, -gates[0], gates[1], state]
    positions = torch.arange(length).repeat(rows, 1)
    positions[0, 70:] -= 70  # a document starts within the first row; the second goes on
    positions[1] += 5
    results = []
    for function in (one, other):
        leaves = [x.to(device).requires_grad_() for x in inputs]
        outputs = function(*leaves, positions=positions.to(device))
        total = sum(output.square().sum() for output in outputs)
        results.append([x.detach() for x in (*outputs, *torch.autograd.grad(total, leaves))])
    differences = [(a - b).norm() / b.norm() for a, b in zip(*results, strict=True)]
    return float(torch.stack(differences).max())
