"""Find, on a CPU, where the host would wait for a GPU: at operators whose result it must know."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READ = {"_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "unique_dim"}
"""Operators that give the host a number, or whose output shape depends on values."""
INDEXED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}
"""Operators that, if indexed by a mask, must count the elements it selects."""


class HostWaits(TorchDispatchMode):
    """Records, in the thread that enters it, what would wait if every tensor were on a GPU.

    Attributes:
        found: names of the operators that would wait, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in INDEXED and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1]
        )
        if name in READ or masks:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits() -> Iterator[HostWaits]:
    """Record waits inside, also at ``tolist``, ``cpu`` and ``synchronize``, which are no operators.

    Code that DeepSpeed runs only on a GPU is not seen: see its ``resolves_data_dependency``.
    """
    mode = HostWaits()

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(Tensor, name)

        def call(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            mode.found.append(name)
            return original(self, *args, **kwargs)

        return call

    def synchronize(*args: Any, **kwargs: Any) -> None:
        mode.found.append("synchronize")

    with pytest.MonkeyPatch.context() as patch, mode:
        for name in ("tolist", "cpu"):
            patch.setattr(Tensor, name, counted(name))
        patch.setattr(torch.cuda, "synchronize", synchronize)
        if deepspeed := sys.modules.get("deepspeed"):
            accelerator = deepspeed.accelerator.get_accelerator()
            patch.setattr(type(accelerator), "synchronize", synchronize)
        yield mode
