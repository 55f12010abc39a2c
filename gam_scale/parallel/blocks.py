"""How the blocks run: what they recompute in the backward pass, and whether compiled."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import gam_scale.parallel.context  # noqa: F401 (registers its operators)
from gam_scale.kernels.choice import HasKernels
from gam_scale.kernels.operator import kept
from gam_scale.model.block import Block, State
from gam_scale.model.carry import Carried
from gam_scale.model.context import Context
from gam_scale.model.layout import Layout, alone
from gam_scale.model.lm import LanguageModel
from gam_scale.parallel.compilation import Backend, Compilation

Recompute = Literal["none", "selective", "full"]

SEGMENT = {"cpu": 1024, "cuda": 8192, "mps": 8192}
"""Tokens of a sequence that a gam block takes at a time, by device: as few as fill it.

On two cores a delta block of width 512 takes 0.96 to 1.0 times as long per token at 65,536 tokens
as at 1,024, in segments of 1,024 (docs/memories.md); all at once it took 1.8 times, and 6.3 GB.
"""

aten = torch.ops.aten
_DEAR = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]
"""Of torch's own operators, those that ``selective`` saves; ours say it of themselves."""


def prepare_blocks(
    model: LanguageModel,
    recompute: Recompute,
    *,
    compiled: bool,
    may_fail: bool = False,
    backend: Backend = "inductor",
    segment: int | None = None,
) -> Compilation:
    """Set what every block does when called; engines wrap it from outside, by module hooks.

    Args:
        model: its blocks are changed in place.
        recompute: see ``train.recompute``.
        compiled: each block is one graph, compiled once for the whole stack at its first call.
        may_fail: see :class:`Compilation`.
        backend: what torch.compile compiles with.
        segment: tokens of a sequence at a time; None: :data:`SEGMENT` of the device.

    Returns:
        what is compiled.
    """
    compilation = Compilation(backend if compiled else None, may_fail=may_fail)
    prepared = partial(_prepared, recompute=recompute, compilation=compilation)
    for block in model.blocks:
        forward = prepared(block.forward)
        if block.layer.by_pieces:
            forward = partial(_in_segments, block, forward, prepared(block.extend), segment)
        setattr(block, "forward", forward)  # noqa: B010 (a method, to the type checker)
    for mixer in (m for m in model.modules() if isinstance(m, HasKernels)):
        mixer.fused = compilation.is_on and backend == "inductor"
        compilation.when_failed.append(partial(setattr, mixer, "fused", False))
    return compilation


def _prepared(
    function: Callable[..., Any], recompute: Recompute, compilation: Compilation
) -> Callable[..., Any]:
    recomputes = recompute != "none"
    uncompiled = _recomputed(_casting_anew(function) if recomputes else function, recompute)
    if not compilation.is_on:
        return uncompiled
    # Else it warns of in-place operators in what is recomputed; there are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    # To dynamo every block is one function, whose graphs it counts together: for each kind of
    # layer the whole sequence, its first segment, the others and the last, with gradients and
    # without. Past its limit of 8 it would compile no more.
    torch._dynamo.config.recompile_limit = 128
    return compilation(_recomputed(function, recompute), uncompiled)


def _recomputed(function: Callable[..., Any], recompute: Recompute) -> Callable[..., Any]:
    if recompute == "none":
        return function
    # In every mode: a mask drawn again would be another mask.
    saved = [aten.native_dropout.default, *kept("always")]
    if recompute == "selective":
        saved += [*_DEAR, *kept("dear")]
    contexts = partial(create_selective_checkpoint_contexts, saved)
    return partial(checkpoint, function, use_reentrant=False, context_fn=contexts)


def _casting_anew(function: Callable[..., Any]) -> Callable[..., Any]:
    """Without autocast's cache of bf16 weights, which a segment after the first finds filled.

    The backward pass, which has no such cache, could not repeat what that segment did.
    """

    def run(x: Tensor, *args: Any) -> Any:
        device = x.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            return function(x, *args)

    return run


def _in_segments(
    block: Block,
    forward: Callable[..., Tensor],
    step: Callable[..., tuple[Tensor, State]],
    segment: int | None,
    x: Tensor,
    layout: Layout,
    context: Context | None = None,
    carried: Carried | None = None,
) -> Tensor:
    """A long sequence segment by segment, each from the state that the one before left.

    What a block computes inside is then no larger than for one segment: it is recomputed segment by
    segment too, and a CPU's caches hold as much of it at 64k tokens as at 1k.
    """
    segment = segment or SEGMENT[x.device.type]
    if context is not None or (carried is None and x.shape[1] <= segment):
        return forward(x, layout, context)
    state = carried.state() if carried is not None else {}
    state, outputs = state or block.init_state(x.shape[0], x.device, x.dtype), []
    for part, its in zip(x.split(segment, 1), layout.segments(segment), strict=True):
        y, state = step(alone(part), state, its)
        # A state is often a view, which until the backward pass keeps all alive it is cut from.
        state = {name: value.clone() for name, value in state.items()}
        outputs.append(y)
    if carried is not None:
        carried.keep(state)
    return torch.cat(outputs, dim=1)
