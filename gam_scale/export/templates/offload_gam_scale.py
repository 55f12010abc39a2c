"""Fetching of a whole layer's weights that accelerate keeps elsewhere, on the CPU or on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def fetched(block: nn.Module) -> Iterator[None]:
    """Have all weights of a layer in place within the context.

    accelerate attaches its hooks to the call of each module that has weights. Layers use weights
    outside of such calls, too, where a convolution or a memory continues from its state. So this
    context calls the hooks of all modules of a layer around the layer's own call.
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
    """Return the modules of a layer whose weights are elsewhere, with the hooks that fetch them."""
    found = []
    for module in block.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is not None and any(p.is_meta for p in module.parameters(recurse=False)):
            found.append((module, hook))
    return found
