"""Cost of an uncompiled block: a kernel per operator, which reads inputs and writes results."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.fake_cuda.graphs import Kernel

aten = torch.ops.aten
_WITHOUT_WORK = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.detach.default,
    aten.lift_fresh.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
}


class Counter(TorchDispatchMode):
    """Mode that counts kernels while it is entered, above a FakeTensorMode.

    Attributes:
        kernels: one for each operator that had work to do, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in _WITHOUT_WORK and not _is_view(func):
            made = [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_cuda]
            if made:  # other operators only ask something of a tensor
                moved = made + [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
                name = str(func.overloadpacket).removeprefix("aten.")
                self.kernels.append(Kernel(name, sum(map(_bytes, moved))))
        return out


def _is_view(func: torch._ops.OpOverload) -> bool:
    returns: Any = func._schema.returns
    alias = returns[0].alias_info if returns else None
    return alias is not None and not alias.is_write


def _bytes(tensor: Tensor) -> int:
    """Return a tensor's bytes, or its storage's, which are fewer for an expanded tensor."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())
