"""Check 4: time of a block, eager, compiled, in TF32 and with fla, and of its kernels."""

from functools import partial
from typing import NamedTuple

import torch

from benchmarks.accept.fla import FLA, installed
from benchmarks.accept.one_block import OneBlock
from benchmarks.accept.record import Check
from benchmarks.accept.timing import longest, milliseconds
from gam_scale.hardware.peak import device_peak_flops
from gam_scale.kernels.choice import PORTABLE

KERNEL_NAME = 60
"""Most characters of a kernel's name that a row shows."""


class How(NamedTuple):
    """One way to run a block."""

    compiled: bool = True
    implementation: str = PORTABLE
    fp32_matmul: str = "ieee"


WAYS = {
    "eager": How(compiled=False),
    "compiled": How(),
    "TF32": How(fp32_matmul="tf32"),
    "fla": How(implementation=FLA),
}


def times(check: Check, name: str, how: How) -> None:
    """Time a step; of an eager block also the forward pass, of others the ten longest kernels."""
    setting = f"train.fp32_matmul={how.fp32_matmul}"
    block = OneBlock(check, name, setting, compiled=how.compiled, implementation=how.implementation)
    with installed(check):
        _measure(check, block, compiled=how.compiled)


def _measure(check: Check, block: OneBlock, *, compiled: bool) -> None:
    ms = milliseconds(block.step, check.device)
    check.figure("forward and backward", ms, "ms")
    check.figure("per token", ms * 1e6 / block.tokens, "ns")
    flops = 3 * block.model.blocks[0].flops_per_token(block.x.shape[1]) * block.tokens
    peak = device_peak_flops(check.device, block.config.train.precision).flops
    check.figure("of the peak rate (MFU of the block)", flops / ms * 1e3 / peak)
    if not compiled:  # a compiled block would compile another graph without gradients
        with torch.no_grad():
            ms = milliseconds(block.forward, check.device)
        check.figure("forward without gradients", ms, "ms")
        return
    for kernel, count, taken in longest(block.step, check.device):
        check.figure(f"{count} x {kernel[:KERNEL_NAME]}", taken, "ms")


PARTS = {
    f"{name} {way}": partial(times, name=name, how=how)
    for name in ("gam_1b", "ctx16k")
    for way, how in WAYS.items()
    if name == "gam_1b" or way in ("compiled", "fla")
}
