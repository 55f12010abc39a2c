"""Memory traffic and kernel launches of layers on a GPU, from those scheduled for a fake H100.

:mod:`gam_scale.plan.gpu_blocks` has the traffic of one layer of each kind, with fused kernels. For
a layer with another width, other parts or settings, the unfused operators of both layers are
counted, and the known traffic is scaled by the ratio of the counts, once for matrix products and
once for all else. So a feed-forward network, a norm, fewer key heads or a gate that was not
scheduled counts by what its operators read and write.
"""

from dataclasses import dataclass

from gam_scale.config import ModelConfig
from gam_scale.model.parts import MixerConfig
from gam_scale.plan import gpu_blocks
from gam_scale.plan.activations import FP32, Setting, layer_work
from gam_scale.plan.operators import Moved

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class Traffic:
    """Traffic of one layer in a micro-batch, forward and backward, recomputation included."""

    products: float  # bytes per token that matrix products read and write
    others: float  # bytes per token of all else
    launches: int  # for each segment of a sequence


def traffic(model: ModelConfig, layer_config: MixerConfig, run: Setting) -> Traffic:
    """Return the bytes and launches of a layer in its portable form on a GPU."""
    kind, precision = layer_config.gpu_block_kind, "fp32" if run.compute == FP32 else "bf16"
    row = gpu_blocks.row(kind, run.recompute if run.compiled else "selective", run.compiled)
    usual = gpu_blocks.row(kind)
    wide = gpu_blocks.row(kind, precision=precision)["bytes"] / usual["bytes"]
    here, there = unfused(model, layer_config, run), _measured(kind, run)
    products = sum(row["by_kernel"].get(name, (0, 0))[1] for name in _PRODUCTS)
    return Traffic(
        wide * products * here.products / there.products,
        wide * (row["bytes"] - products) * here.others / there.others,
        row["kernels"],
    )


def unfused(model: ModelConfig, layer_config: MixerConfig, run: Setting) -> Moved:
    """Return the bytes per token that a layer's operators move if each runs by itself."""
    moved = layer_work(model, layer_config, run).moved
    return Moved(*(size / run.tokens for size in moved))


def _measured(kind: str, run: Setting) -> Moved:
    """Return :func:`unfused` of the layer in gpu_blocks.json, with this run's other settings."""
    model = gpu_blocks.model(kind)
    alike = run._replace(rows=2, length=gpu_blocks.TOKENS, documents=True, context=1)
    return unfused(model, model.stack()[0], alike)
