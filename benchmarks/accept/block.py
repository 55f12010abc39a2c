"""Check 4: how long a block takes, eager and compiled, and in which kernels."""

import torch

from benchmarks.accept.one_block import OneBlock
from benchmarks.accept.record import Check
from benchmarks.accept.timing import longest, milliseconds
from gam_scale.hardware import device_peak_flops

KERNEL_NAME = 60
"""Characters of a kernel's name that a row has room for."""


def times(check: Check, name: str, *, compiled: bool) -> None:
    """Forward alone, and a step; a compiled one's ten longest kernels as well."""
    block = OneBlock(check, name, compiled=compiled)
    ms = milliseconds(block.step, check.device)
    check.figure("forward and backward", ms, "ms")
    check.figure("per token", ms * 1e6 / block.tokens, "ns")
    flops = 3 * block.model.blocks[0].flops_per_token(block.x.shape[1]) * block.tokens
    peak = device_peak_flops(check.device, block.config.train.precision).flops
    check.figure("of the peak rate (MFU of the block)", flops / ms * 1e3 / peak)
    if not compiled:  # for which a graph of its own would be compiled
        with torch.no_grad():
            ms = milliseconds(block.forward, check.device)
        check.figure("forward without gradients", ms, "ms")
        return
    for kernel, count, taken in longest(block.step, check.device):
        check.figure(f"{count} x {kernel[:KERNEL_NAME]}", taken, "ms")


PARTS = {
    f"{name} {how}": lambda check, name=name, how=how: times(
        check, name, compiled=how == "compiled"
    )
    for name in ("gam_1b", "ctx16k")
    for how in ("eager", "compiled")
}
