"""Weights that accelerate keeps elsewhere, on the CPU or on disk, fetched for a whole layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def fetched(block: nn.Module) -> Iterator[None]:
    """While it lasts, the weights of a layer are there.

    accelerate hangs its hooks on the call of each module that has weights. Layers also use them
    outside of such a call, where a convolution or a memory goes on from its state: so the hooks are
    called for all modules of a layer around its own call.
    """
    hooked = _hooked(block)
    for module, hook in hooked:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for module, hook in hooked:
            hook.post_forward(module, None)


def _hooked(block: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The modules of a layer whose weights are elsewhere, with what fetches them."""
    found = []
    for module in block.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and any(p.is_meta for p in module.parameters(recurse=False)):
            found.append((module, hook))
    return found
