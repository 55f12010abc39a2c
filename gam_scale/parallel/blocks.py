"""How the blocks run: what they recompute in the backward pass, and whether compiled."""

import logging
from functools import partial
from typing import Literal

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

import gam_scale.parallel.context  # noqa: F401 (registers its operators)
from gam_scale.model.lm import LanguageModel

Recompute = Literal["none", "selective", "full"]

aten = torch.ops.aten
_COSTLY = [
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.gam_scale.selective_scan.default,
    torch.ops.gam_scale.linear_scan.default,
    torch.ops.gam_scale.context_gather.default,
    torch.ops.gam_scale.context_shift.default,
]
# Saved in every mode: a mask drawn again would be another mask.
_RANDOM = [torch.ops.gam_scale.keep_mask.default, aten.native_dropout.default]
_SAVED = {"selective": _COSTLY + _RANDOM, "full": _RANDOM}


def prepare_blocks(model: LanguageModel, recompute: Recompute, *, compiled: bool) -> None:
    """Set what every block does when called; engines wrap it from outside, by module hooks.

    Args:
        model: its blocks are changed in place.
        recompute: see ``train.recompute``.
        compiled: each block is one graph, compiled once for the whole stack at its first call.
    """
    for block in model.blocks:
        forward = block.forward
        if recompute != "none":
            contexts = partial(create_selective_checkpoint_contexts, _SAVED[recompute])
            forward = partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            # Else it warns of in-place operators in what is recomputed; there are none.
            logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
            # Shapes are fixed; another one (a ragged last batch) must not slow the others.
            forward = torch.compile(forward, dynamic=False)
        block.forward = forward
