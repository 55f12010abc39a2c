"""Memory, FLOPs and exchanges of our own operators, of which torch sees only inputs and outputs.

An operator that is missing from a table takes, computes or sends nothing that counts.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Registers the operators.
import gam_scale.model.memory.recurrence
import gam_scale.model.selective_scan
import gam_scale.parallel.context  # noqa: F401
from gam_scale.kernels.attention import workspace
from gam_scale.model.selective_steps import STEPS


class Moved(NamedTuple):
    """Bytes that operators read and write if each runs by itself, not fused with others."""

    products: float = 0.0  # matrix products
    others: float = 0.0


class Exchanged(NamedTuple):
    """Bytes of whole tensors that the ranks of one sequence exchange, by operation."""

    all_gather: float = 0.0
    reduce_scatter: float = 0.0
    shift: float = 0.0  # sent by a rank that has a neighbour on that side


_OPS = torch.ops.gam_scale
_Table = dict[Any, Callable[..., Any]]

EXCHANGES: _Table = {
    _OPS.context_gather.default: lambda x, number, size: Exchanged(all_gather=x.nbytes * size),
    _OPS.context_scatter.default: lambda x, number: Exchanged(reduce_scatter=x.nbytes),
    _OPS.context_shift.default: lambda x, number, step: Exchanged(shift=x.nbytes),
}
"""By operator, the function from its arguments to what it exchanges."""


def _linear_scan_flops(decay: Tensor, write: Tensor, *_: Any) -> float:
    """Count a decay of the last state, by a factor or a matrix, and a write, for each state."""
    return 2.0 * write.numel() * decay.shape[-1]


def _linear_scan_backward_flops(grads: Tensor, decay: Tensor, *_: Any) -> float:
    """Count the same scan of gradients; torch's own operators compute those of the decays."""
    return _linear_scan_flops(decay, grads[:, 1:])


def _solve_flops(lower: Tensor, right: Tensor, *_: Any) -> float:
    """Count half of a square matrix of factors, each multiplied and added for every column."""
    return float(right.numel() * lower.shape[-1])


FLOPS: _Table = {
    _OPS.solve_unit_lower.default: _solve_flops,
    _OPS.solve_unit_lower_transposed.default: _solve_flops,
    _OPS.linear_scan.default: _linear_scan_flops,
    _OPS.linear_scan_backward.default: _linear_scan_backward_flops,
}
"""By operator, the function from its arguments to its FLOPs."""


def _attention_flops(
    q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False, **_: Any
) -> float:
    """Count two products over the visible pairs of a query and a key."""
    rows, heads, n, width = q.shape
    m = k.shape[2]
    pairs = n * m - causal * (n * (n - 1) // 2)
    return 4.0 * rows * heads * width * pairs


def _attention_backward_flops(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Any, **_: Any
) -> float:
    """Count five products: the scores again; gradients of weights, queries, keys and values."""
    return 2.5 * _attention_flops(q, k, v, *rest)


ATTENTION_FLOPS: _Table = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (
        _attention_backward_flops
    ),
}
"""As :data:`FLOPS`, of torch's attention on CPUs, which its own counter does not know."""


def _selective_scan_bytes(x: Tensor, *rest: Any) -> float:
    """Return the bytes of what each token writes, of step sizes with resets, and of two states."""
    initial, reset = rest[4], rest[5]
    return x.nbytes * (2 if reset is not None else 1) + 2.0 * initial.nbytes


def _selective_scan_backward_bytes(
    grad_y: Tensor, grad_final: Tensor, x: Tensor, *rest: Any
) -> float:
    """Return the bytes of the forward pass, and of one chunk's states and decays.

    Fused, only one piece of a chunk has those at a time, and their gradients.
    """
    reset, chunk, fused = rest[4], rest[6], rest[7]
    states = (4 * STEPS + chunk // STEPS if fused else 2 * min(chunk, x.shape[1])) + 3
    return x.nbytes * (2 if reset is not None else 1) + float(states * grad_final.nbytes)


def _attention_bytes(q: Tensor, k: Tensor, *rest: Any) -> float:
    return workspace(q, k, rest[5], *rest[7:8])[0]


def _attention_backward_bytes(grad: Tensor, out: Tensor, *rest: Any) -> float:
    return workspace(rest[2], rest[3], rest[9], *rest[11:12])[1]


_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default)
_WITHOUT_WORK = (
    _ATEN.empty.memory_format,
    _ATEN.empty_like.default,
    _ATEN.empty_strided.default,
    _ATEN.new_empty.default,
    _ATEN.new_empty_strided.default,
    _ATEN.detach.default,
    _ATEN._unsafe_view.default,
    _ATEN._reshape_alias.default,
)


def moved(
    func: torch._ops.OpOverload, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Moved:
    """Return what one operator reads and writes: nothing for a view or an empty tensor."""
    returns: Any = func._schema.returns
    alias = returns[0].alias_info if returns else None
    if func in _WITHOUT_WORK or (alias is not None and not alias.is_write):
        return Moved()
    size = float(sum(_bytes(t) for t in (*inputs, *outputs)))
    return Moved(products=size) if func in _PRODUCTS else Moved(others=size)


def _bytes(tensor: Tensor) -> int:
    """Return a tensor's bytes, or its storage's, which are fewer for an expanded tensor."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


WORKSPACE: _Table = {
    _OPS.varlen_attention.default: _attention_bytes,
    _OPS.varlen_attention_backward.default: _attention_backward_bytes,
    _OPS.selective_scan.default: _selective_scan_bytes,
    _OPS.selective_scan_backward.default: _selective_scan_backward_bytes,
}
"""By operator, the function from its arguments to bytes it takes beside inputs and outputs."""
