"""The peak rate of a device's matrix products: from data sheets, else measured."""

import time
from functools import cache

import torch

from gam_scale.hardware.data_sheets import Peak, Precision, data_sheet_peak
from gam_scale.hardware.processor import synchronize
from gam_scale.model.linear import linear


def device_peak_flops(device: torch.device | str, precision: Precision) -> Peak:
    """Return the dense matmul peak of one device, the denominator of MFU.

    For known GPUs this is the data sheet's figure; fp32 means the TF32 figure only if torch has
    been told to use TF32. Any other device, a MIG slice included, is measured, which takes about
    half a second of a process's first run. Ranks that share one CPU should measure at the same
    time: each then finds its share.
    """
    device = torch.device(device)
    if device.type == "cuda":
        tf32 = torch.get_float32_matmul_precision() != "highest"
        known = data_sheet_peak(torch.cuda.get_device_name(device), precision, tf32)
        if known:
            return known
    return _measured_peak(device, precision, torch.get_num_threads())


@cache
def _measured_peak(device: torch.device, precision: Precision, threads: int) -> Peak:
    """Return the best rate over square matmuls that double in size until one takes over 0.05 s.

    Measured once per process and number of ``threads``: a sweep trains dozens of short runs in one
    process.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best, best_n = 0.0, 0
    for n in (512, 1024, 2048, 4096, 8192):
        seconds = _matmul_seconds(n, dtype, device)
        if 2 * n**3 / seconds > best:
            best, best_n = 2 * n**3 / seconds, n
        if seconds > 0.05:  # the next size would take eight times as long
            break
    return Peak(best, f"measured {best_n}^3 matmul")


def _matmul_seconds(n: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the seconds of the fastest of several (n, n) products; the first ones warm up."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, runs, start = float("inf"), 0, time.perf_counter()
    while runs < 2 or time.perf_counter() - start < 0.15:
        before = time.perf_counter()
        linear(a, b)
        synchronize(device)
        best = min(best, time.perf_counter() - before)
        runs += 1
    return best
