"""The peak rate of a device's matrix products: from data sheets, else measured."""

import re
import time
from functools import cache
from typing import Literal, NamedTuple

import torch

from gam_scale.model.linear import linear

Precision = Literal["fp32", "bf16"]


class Peak(NamedTuple):
    """The rate a device's matrix multiplications can reach, in FLOP/s, and where it comes from."""

    flops: float
    source: str


# Dense (no structured sparsity) TFLOP/s with fp32 accumulation: bf16, TF32, fp32. From NVIDIA's
# product data sheets and, for RTX cards, its whitepapers "Ada" and "Ampere GA102". Sheets that
# print only the sparse rate are halved. Zero: the precision has no matrix unit, so measure.
# A GPU that is not listed is measured. First match wins.
_DATA_SHEETS: list[tuple[str, str, tuple[float, float, float]]] = [
    (r"\bB200\b", "B200", (2250, 1125, 75)),  # an eighth of "HGX B200"
    (r"\bGH200\b", "GH200", (989.4, 494.7, 67)),
    (r"\bH200 NVL\b", "H200 NVL", (835.5, 417.5, 60)),
    (r"\bH200\b", "H200 SXM", (989.4, 494.7, 67)),
    (r"\bH100 PCIe\b", "H100 PCIe", (756, 378, 51)),
    (r"\bH100 NVL\b", "H100 NVL", (835.5, 417.5, 60)),
    (r"\bH100\b", "H100 SXM", (989.4, 494.7, 67)),
    (r"\bA100\b", "A100", (312, 156, 19.5)),
    (r"\bA40\b", "A40", (149.7, 74.8, 37.4)),
    (r"\bA30\b", "A30", (165, 82, 10.3)),
    (r"\bA10\b", "A10", (125, 62.5, 31.2)),
    (r"\bL40S\b", "L40S", (362, 183, 91.6)),
    (r"\bL40\b", "L40", (181, 90.5, 90.5)),
    (r"\bL4\b", "L4", (121, 60, 30.3)),
    (r"\bV100-PCIE\b", "V100 PCIe", (0, 0, 14)),
    (r"\bV100-SXM", "V100 SXM", (0, 0, 15.7)),
    (r"\bT4\b", "T4", (0, 0, 8.1)),
    (r"\bRTX A6000$", "RTX A6000", (154.8, 77.4, 38.7)),
    (r"\bRTX 4090$", "RTX 4090", (165.2, 82.6, 82.6)),
    (r"\bRTX 3090$", "RTX 3090", (71, 35.6, 35.6)),
]


def device_peak_flops(device: torch.device | str, precision: Precision) -> Peak:
    """The dense matmul peak of one device, the denominator of MFU.

    Known GPUs give their data sheet's figure; fp32 means the TF32 figure only where torch has been
    told to use TF32. Any other device, a MIG slice included, is measured, which takes about half a
    second of a process's first run. Ranks that share one CPU should measure at the same time: each
    then finds its share.
    """
    device = torch.device(device)
    if device.type == "cuda":
        known = data_sheet_peak(torch.cuda.get_device_name(device), precision)
        if known:
            return known
    return _measured_peak(device, precision, torch.get_num_threads())


def data_sheet_peak(name: str, precision: Precision) -> Peak | None:
    if " MIG " in name:
        return None
    column = 0 if precision == "bf16" else 2
    if precision == "fp32" and torch.get_float32_matmul_precision() != "highest":
        column = 1
    for pattern, label, teraflops in _DATA_SHEETS:
        if re.search(pattern, name):
            rate = teraflops[column]
            return Peak(rate * 1e12, f"{label} data sheet") if rate else None
    return None


@cache
def _measured_peak(device: torch.device, precision: Precision, threads: int) -> Peak:
    """Best rate over square matmuls that double in size until one takes a noticeable time.

    Once a process with as many ``threads``: a sweep trains dozens of short runs in one.
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
    """Seconds of the fastest of several (n, n) @ (n, n) products; the first ones warm up."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best, runs, start = float("inf"), 0, time.perf_counter()
    while runs < 2 or time.perf_counter() - start < 0.15:
        before = time.perf_counter()
        linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - before)
        runs += 1
    return best
