"""Operators of our own: one opaque node each in a compiled graph."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils.flop_counter import register_flop_formula

Keep = Literal["dear", "always"]
"""When a block that is recomputed has kept an operator's result. ``dear``: with ``train.recompute``
selective, since it costs much to compute again; ``always``: with full too, since a second result
would be another one, as of a random draw."""

KEPT: dict[str, Keep] = {}
"""By name, the operators that say so."""


def kept(how: Keep) -> list[Any]:
    """The operators defined so far that are kept in that way."""
    names = [name.split("::") for name, keep in KEPT.items() if keep == how]
    return [getattr(getattr(torch.ops, library), name).default for library, name in names]


def operator(
    name: str,
    flops: Callable[..., int] | None = None,
    flops_of_values: Callable[..., int] | None = None,
    keep: Keep | None = None,
    **options: Any,
) -> Callable:
    """``torch.library.custom_op(name, mutates_args=())``, defined once in a process.

    transformers runs the modules of an exported model again where it is loaded again. Torch would
    then free the first definition under the models that still call it.

    Args:
        name: ``library::operator``.
        flops: its FLOPs from the shapes of its arguments, for torch's FLOP counter.
        flops_of_values: the same from the arguments themselves.
        keep: whether a backward pass that computes a block again has kept its results.
        options: as torch has them.
    """

    def define(function: Callable) -> Any:
        KEPT.update({name: keep} if keep else {})
        known = OPDEFS.get(name)
        if known is not None:
            return known
        new = torch.library.custom_op(name, function, mutates_args=(), **options)
        for formula, get_raw in ((flops, False), (flops_of_values, True)):
            if formula is not None:
                register_flop_formula(new._opoverload.overloadpacket, get_raw)(formula)
        return new

    return define
