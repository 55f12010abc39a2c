"""Operators of our own: one opaque node each in a compiled graph."""

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS


def operator(name: str, **options: Any) -> Callable[[Callable], Any]:
    """``torch.library.custom_op(name, mutates_args=())``, defined once in a process.

    transformers runs the modules of an exported model again where it is loaded again. Torch would
    then free the first definition under the models that still call it.
    """

    def define(function: Callable) -> Any:
        known = OPDEFS.get(name)
        if known is not None:
            return known
        return torch.library.custom_op(name, function, mutates_args=(), **options)

    return define
