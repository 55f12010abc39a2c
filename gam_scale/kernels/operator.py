"""Definition of custom operators, each an opaque node in a compiled graph."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch._library.custom_ops import OPDEFS
from torch.utils.flop_counter import register_flop_formula

Keep = Literal["dear", "always"]
"""When a recomputed block keeps an operator's result. ``dear``: only with ``train.recompute``
selective, for a result that is expensive to compute again. ``always``: with full too, for a random
draw, which would differ the second time; torch is told so by the operator's tag."""

KEPT: dict[str, Keep] = {}
"""The operators with a ``keep``, by name."""


def kept(how: Keep) -> list[Any]:
    """Return the operators defined so far whose ``keep`` is ``how``."""
    names = [name.split("::") for name, keep in KEPT.items() if keep == how]
    return [getattr(getattr(torch.ops, library), name).default for library, name in names]


def operator(
    name: str,
    flops: Callable[..., int] | None = None,
    flops_of_values: Callable[..., int] | None = None,
    keep: Keep | None = None,
) -> Callable:
    """Decorate a function as ``torch.library.custom_op(name, mutates_args=())``, once in a process.

    transformers executes an exported model's modules again when the model is loaded again. A second
    definition would make torch free the first one, which models loaded before still call.

    Args:
        name: ``library::operator``.
        flops: computes its FLOPs from the shapes of its arguments, for torch's FLOP counter.
        flops_of_values: computes the same from the arguments themselves.
        keep: when a recomputed block keeps its results; None: never.
    """

    def define(function: Callable) -> Any:
        KEPT.update({name: keep} if keep else {})
        known = OPDEFS.get(name)
        if known is not None:
            return known
        # a tuple: torch 2.11, with which benchmarks/gpu_accept.py works too, takes no single tag
        tags = (torch.Tag.nondeterministic_seeded,) if keep == "always" else ()
        new = torch.library.custom_op(name, function, mutates_args=(), tags=tags)
        for formula, get_raw in ((flops, False), (flops_of_values, True)):
            if formula is not None:
                register_flop_formula(new._opoverload.overloadpacket, get_raw)(formula)
        return new

    return define
