"""How the blocks run: what the backward pass recomputes, in which segments, whether compiled."""

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
"""Tokens that a gam block takes at a time, by device type: the fewest that keep the device busy.

On two cores, in segments of 1,024, a delta block of width 512 takes 0.96 to 1.0 times as long per
token at 65,536 tokens as at 1,024 (docs/memories.md); unsegmented it took 1.8 times, and 6.3 GB.
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
"""The operators of torch whose results ``selective`` saves; ours declare this themselves."""


def prepare_blocks(
    model: LanguageModel,
    recompute: Recompute,
    *,
    compiled: bool,
    may_fail: bool = False,
    backend: Backend = "inductor",
    segment: int | None = None,
) -> Compilation:
    """Replace every block's ``forward`` by one with recomputation, compilation and segments.

    Engines wrap the blocks from outside, through module hooks.

    Args:
        model: its blocks are changed in place.
        recompute: see ``train.recompute``.
        compiled: compile each block into one graph, once for the whole stack, at its first call.
        may_fail: see :class:`Compilation`.
        backend: torch.compile's backend.
        segment: tokens that a block takes at a time; None: :data:`SEGMENT` of the device.

    Returns:
        The compilation of these blocks.
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
    # Otherwise torch warns of in-place operators in recomputed code; there are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    # Dynamo takes all blocks for one function and counts their graphs together: for each kind of
    # layer those of a whole sequence, of its first segment, of the middle ones and of the last,
    # each with and without gradients. Past its default limit of 8 it would compile no more.
    torch._dynamo.config.recompile_limit = 128
    return compilation(_recomputed(function, recompute), uncompiled)


def _recomputed(function: Callable[..., Any], recompute: Recompute) -> Callable[..., Any]:
    if recompute == "none":
        return function
    # Saved in both modes: a dropout mask drawn again would be a different mask.
    saved = [aten.native_dropout.default, *kept("always")]
    if recompute == "selective":
        saved += [*_DEAR, *kept("dear")]
    contexts = partial(create_selective_checkpoint_contexts, saved)
    return partial(checkpoint, function, use_reentrant=False, context_fn=contexts)


def _casting_anew(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` without autocast's cache of bf16 weights.

    Segments after the first would find the cache filled. The backward pass, which has no such
    cache, could not repeat what those segments did.
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
    """Run a block on a long sequence by segments, each from the state that the previous one left.

    The block's intermediate results are then no larger than for one segment: they are recomputed
    segment by segment too, and a CPU's caches hold as much of them at 64k tokens as at 1k.
    """
    segment = segment or SEGMENT[x.device.type]
    if context is not None or (carried is None and x.shape[1] <= segment):
        return forward(x, layout, context)
    state = carried.state() if carried is not None else {}
    state, outputs = state or block.init_state(x.shape[0], x.device, x.dtype), []
    for part, its in zip(x.split(segment, 1), layout.segments(segment), strict=True):
        y, state = step(alone(part), state, its)
        # A state is often a view, which would keep its whole base alive until the backward pass.
        state = {name: value.clone() for name, value in state.items()}
        outputs.append(y)
    if carried is not None:
        carried.keep(state)
    return torch.cat(outputs, dim=1)
