"""Time that layers, head and update compute: products, memory traffic, scans and launches.

All shares and times below are assumptions about GPUs: none was measured on one.
"""

import math
from dataclasses import dataclass, fields

from gam_scale.config import ModelConfig
from gam_scale.hardware.data_sheets import Precision
from gam_scale.model.parts import MixerConfig
from gam_scale.plan.activations import Setting, layer_work, segments
from gam_scale.plan.gpus import Gpu
from gam_scale.plan.traffic import traffic

MATMUL_SHARE = 0.65
"""Share of the data sheet's peak that matrix products of a model's sizes reach."""

MEMORY_SHARE = 0.8
"""Share of the data sheet's memory rate that kernels reach which only read and write."""

SCAN_SHARE = 0.1
"""Share of the fp32 peak that scans and triangular solves reach, whose steps follow each other."""

LAUNCH_S = 3e-6
"""Seconds from the end of one kernel's work to the start of the next kernel's."""

_LOGIT_BYTES = 12.0
"""Bytes read and written per entry of bf16 logits, in six passes of products and softmax."""

_CAP_BYTES = 58.0
"""Bytes that a cap adds per entry of the logits, in fp32: a copy of the bf16 logits, three passes
over the copy, two for the slope, and one over the gradient."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of computing, by what limits it."""

    products: float = 0.0  # of matrix products and attention: for FLOPs, or for bytes if longer
    memory: float = 0.0  # of all other reads and writes
    scans: float = 0.0
    launches: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def plus(self, other: "Seconds", times: float = 1.0) -> "Seconds":
        """Return the sum of this and ``times`` the other."""
        return Seconds(
            *(getattr(self, f.name) + times * getattr(other, f.name) for f in fields(self))
        )


def layer_seconds(
    model: ModelConfig, layer_config: MixerConfig, run: Setting, gpu: Gpu, share: float
) -> Seconds:
    """Estimate the time of one layer's forward and backward pass over a micro-batch.

    Args:
        model: gives the layer's sizes.
        layer_config: the layer, which runs in its portable form.
        run: how layers run.
        gpu: if its ``memory_rate`` is None, only FLOPs count.
        share: see :data:`MATMUL_SHARE`.
    """
    done, precision = layer_work(model, layer_config, run), _precision(run)
    # In an fp32 run all products are fp32, and a layer's own are not told apart from the others.
    in_fp32 = 0.0 if precision == "fp32" else done.fp32_flops - done.scan_flops
    seconds = (done.flops - in_fp32) / gpu.peak_flops(precision)
    seconds = (seconds + in_fp32 / gpu.fp32_flops(tf32=run.tf32)) / share
    scans = done.scan_flops / gpu.peak_flops("fp32")
    if gpu.memory_rate is None:
        return Seconds(products=seconds, scans=scans / share)
    moved = traffic(model, layer_config, run)
    rate = gpu.memory_rate * MEMORY_SHARE
    return Seconds(
        products=max(seconds, moved.products * run.tokens / rate),
        memory=moved.others * run.tokens / rate,
        scans=scans / SCAN_SHARE,
        launches=moved.launches * segments(layer_config, run) * LAUNCH_S,
    )


def head_seconds(
    parameters: int, width: int, run: Setting, gpu: Gpu, share: float, *, capped: bool
) -> Seconds:
    """Estimate the time of a micro-batch's logits and loss, forward and backward.

    Args:
        parameters: number of the head's parameters, vocabulary times width.
        width: the model's width.
        run, gpu, share: see :func:`layer_seconds`.
        capped: whether logits have a cap.
    """
    flops = 6.0 * parameters * run.tokens
    seconds = flops / gpu.peak_flops(_precision(run)) / share
    if gpu.memory_rate is None:
        return Seconds(products=seconds)
    entries, rate = parameters / width * run.tokens, gpu.memory_rate * MEMORY_SHARE
    moved = _LOGIT_BYTES * run.compute / 2 * entries
    return Seconds(products=max(seconds, moved / rate), memory=capped * _CAP_BYTES * entries / rate)


def update_seconds(
    updated: float, kept: float, flops: float, run: Setting, gpu: Gpu, share: float
) -> Seconds:
    """Estimate the time of the optimizer's step.

    It reads and writes parameters and states, reads gradients, and makes matrix products.

    Args:
        updated: bytes of the parameters that this rank updates.
        kept: bytes of the states that the optimizer keeps for them.
        flops: FLOPs of the optimizer's matrix products.
        run, gpu, share: see :func:`layer_seconds`.
    """
    moved = (2 + 1) * updated + 2 * kept
    return Seconds(
        products=flops / gpu.peak_flops(_precision(run)) / share,
        memory=moved / ((gpu.memory_rate or math.inf) * MEMORY_SHARE),
    )


def _precision(run: Setting) -> Precision:
    return "bf16" if run.compute == 2 else "fp32"
