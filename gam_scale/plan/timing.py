"""How long a layer computes: what it multiplies, moves and launches, each at its own rate.

All shares and times below are assumptions about GPUs: none was measured on one.
"""

import math
from dataclasses import dataclass, fields

from gam_scale.config import ModelConfig
from gam_scale.hardware.data_sheets import Precision
from gam_scale.model.parts import MixerConfig
from gam_scale.plan.activations import Setting, segments, work
from gam_scale.plan.gpus import Gpu
from gam_scale.plan.traffic import traffic

MATMUL_SHARE = 0.65
"""Of the data sheet's peak that matrix products of a model's sizes reach."""

MEMORY_SHARE = 0.8
"""Of the data sheet's rate that kernels reach which do nothing but read and write."""

SCAN_SHARE = 0.1
"""Of the fp32 peak, in scans and triangular solves: step after step, with little beside it."""

LAUNCH_S = 3e-6
"""From the end of one kernel's work to the begin of the next one's."""

_LOGIT_BYTES = 12.0
"""Read and written for an entry of the logits: bf16, six passes of products and softmax over it."""

_CAP_BYTES = 58.0
"""Likewise for a cap, whose passes are in fp32: a copy of bf16 logits, three over it, the slope's
two, and one over the gradient."""


@dataclass(frozen=True)
class Seconds:
    """Of computing, by what limits it."""

    products: float = 0.0  # matrix products and attention: their FLOPs, or their bytes if longer
    memory: float = 0.0  # all else that reads and writes
    scans: float = 0.0
    launches: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def plus(self, other: "Seconds", times: float = 1.0) -> "Seconds":
        """This and ``times`` the other."""
        return Seconds(
            *(getattr(self, f.name) + times * getattr(other, f.name) for f in fields(self))
        )


def layer(model: ModelConfig, one: MixerConfig, run: Setting, gpu: Gpu, share: float) -> Seconds:
    """One layer's forward and backward pass over a micro-batch.

    Args:
        model: its sizes.
        one: the layer, in the portable form.
        run: how layers run.
        gpu: with a ``memory_rate`` of None, FLOPs alone count.
        share: see :data:`MATMUL_SHARE`.
    """
    done, precision = work(model, one, run), _precision(run)
    in_fp32 = done.flops if precision == "fp32" else done.fp32_flops - done.scan_flops
    seconds = (done.flops - in_fp32) / gpu.peak_flops(precision)
    seconds = (seconds + in_fp32 / gpu.peak_flops("fp32")) / share
    scans = done.scan_flops / gpu.peak_flops("fp32")
    if gpu.memory_rate is None:
        return Seconds(products=seconds, scans=scans / share)
    moved = traffic(model, one, run)
    rate = gpu.memory_rate * MEMORY_SHARE
    return Seconds(
        products=max(seconds, moved.products * run.tokens / rate),
        memory=moved.others * run.tokens / rate,
        scans=scans / SCAN_SHARE,
        launches=moved.launches * segments(one, run) * LAUNCH_S,
    )


def head(
    parameters: int, width: int, run: Setting, gpu: Gpu, share: float, *, capped: bool
) -> Seconds:
    """The logits of a micro-batch, the loss and both passes of what makes them.

    Args:
        parameters: of the head, vocabulary times width.
        width: of the model.
        run, gpu, share: see :func:`layer`.
        capped: whether logits have a cap.
    """
    flops = 6.0 * parameters * run.tokens
    seconds = flops / gpu.peak_flops(_precision(run)) / share
    if gpu.memory_rate is None:
        return Seconds(products=seconds)
    entries, rate = parameters / width * run.tokens, gpu.memory_rate * MEMORY_SHARE
    moved = _LOGIT_BYTES * run.compute / 2 * entries
    return Seconds(products=max(seconds, moved / rate), memory=capped * _CAP_BYTES * entries / rate)


def update(
    updated: float, kept: float, flops: float, run: Setting, gpu: Gpu, share: float
) -> Seconds:
    """Parameters and what the optimizer keeps of them read and written, gradients read; products.

    Args:
        updated: bytes of the parameters that this rank updates.
        kept: bytes that the optimizer keeps of them.
        flops: of its matrix products.
        run, gpu, share: see :func:`layer`.
    """
    moved = (2 + 1) * updated + 2 * kept
    return Seconds(
        products=flops / gpu.peak_flops(_precision(run)) / share,
        memory=moved / ((gpu.memory_rate or math.inf) * MEMORY_SHARE),
    )


def _precision(run: Setting) -> Precision:
    return "bf16" if run.compute == 2 else "fp32"
