"""What layers move through a GPU's memory and launch, from what a fake H100 was scheduled.

That was done for a layer of each kind (:mod:`gam_scale.plan.gpu_blocks`). Of a layer of another
width, with other parts or settings, all operators are counted, each by itself as nothing fuses
them, and those of the measured layer too: as many times what these move is what that one moves
fused, products apart from all else. So a feed-forward network, a norm, fewer heads of keys or a
gate that no GPU was scheduled with count as far as operators of theirs read and write.
"""

from dataclasses import dataclass

from gam_scale.config import ModelConfig
from gam_scale.model.parts import MixerConfig
from gam_scale.plan import gpu_blocks
from gam_scale.plan.activations import FP32, Setting, work
from gam_scale.plan.operators import Moved

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class Traffic:
    """Of one layer in one micro-batch, forward and backward, recomputation included."""

    products: float  # bytes per token that matrix products read and write
    others: float  # bytes per token of all else
    launches: int  # for each segment of a sequence


def traffic(model: ModelConfig, one: MixerConfig, run: Setting) -> Traffic:
    """Bytes and launches of a layer in the portable form, on a GPU."""
    kind, precision = one.measured_as, "fp32" if run.compute == FP32 else "bf16"
    row = gpu_blocks.row(kind, run.recompute if run.compiled else "selective", run.compiled)
    usual = gpu_blocks.row(kind)
    wide = gpu_blocks.row(kind, precision=precision)["bytes"] / usual["bytes"]
    here, there = unfused(model, one, run), _measured(kind, run)
    products = sum(row["by_kernel"].get(name, (0, 0))[1] for name in _PRODUCTS)
    return Traffic(
        wide * products * here.products / there.products,
        wide * (row["bytes"] - products) * here.others / there.others,
        row["kernels"],
    )


def unfused(model: ModelConfig, one: MixerConfig, run: Setting) -> Moved:
    """Bytes per token that a layer's operators move, each by itself."""
    moved = work(model, one, run).moved
    return Moved(*(size / run.tokens for size in moved))


def _measured(kind: str, run: Setting) -> Moved:
    """As :func:`unfused`, of the layer that a fake H100 was scheduled, by this run's rules."""
    model = gpu_blocks.model(kind)
    alike = run._replace(rows=2, length=gpu_blocks.TOKENS, documents=True, context=1)
    return unfused(model, model.stack()[0], alike)
