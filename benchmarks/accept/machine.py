"""Check 0: the machine, and the rates that everything else is measured against."""

import importlib.metadata
import platform
import shutil
import subprocess
from functools import partial

import torch

from benchmarks.accept.record import Check
from benchmarks.accept.timing import milliseconds
from gam_scale.hardware.compiler import can_compile
from gam_scale.hardware.peak import device_peak_flops

PACKAGES = ("torch", "triton", "fla-core", "mamba-ssm", "deepspeed", "mosaicml-streaming", "numpy")
CLOCKS = (
    "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"
)
GIB = 2**30


def names(check: Check) -> None:
    """Record versions, and the device with its memory."""
    check.note("python", platform.python_version())
    for package in PACKAGES:
        try:
            check.note(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            check.note(package, "not installed")
    check.note("torch's CUDA", torch.version.cuda)
    check.note("compiles with", " ".join(map(str, can_compile(check.device))))
    if check.device.type != "cuda":
        check.note("device", f"{platform.processor() or platform.machine()}, no GPU: no figures")
        return
    of = torch.cuda.get_device_properties(check.device)
    check.note("device", of.name)
    check.note("compute capability", f"{of.major}.{of.minor}")
    check.figure("multiprocessors", of.multi_processor_count)
    check.figure("memory", of.total_memory / GIB, "GiB")
    check.figure("free memory", torch.cuda.mem_get_info(check.device)[0] / GIB, "GiB")


def clocks(check: Check) -> None:
    """Record the driver's clocks after a second of work, so not those of an idle device."""
    tool = shutil.which("nvidia-smi")
    if check.device.type != "cuda" or tool is None:
        check.note("clocks", "no nvidia-smi here")
        return
    a = torch.randn(4096, 4096, device=check.device, dtype=torch.bfloat16)
    milliseconds(lambda: a @ a, check.device, repeats=500)
    command = [tool, f"--query-gpu={CLOCKS}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    values = said.strip().splitlines()[0].split(", ")
    for name, value in zip(CLOCKS.split(","), values, strict=False):
        check.note(name, value)


def products(check: Check) -> None:
    """Measure square matrix products in each arithmetic; record the peak rates behind MFU."""
    n = check.pick(8192, 256)
    flops = 2 * n**3
    for name, dtype, tf32 in (
        ("bf16", torch.bfloat16, False),
        ("TF32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        a, b = (torch.randn(n, n, device=check.device).to(dtype) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        try:
            rate = flops / milliseconds(partial(torch.matmul, a, b), check.device) * 1e3
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        check.figure(f"{name} product of {n}", rate / 1e12, "TFLOP/s")
    for precision in ("bf16", "fp32"):
        peak = device_peak_flops(check.device, precision)
        check.figure(f"{precision} peak, {peak.source}", peak.flops / 1e12, "TFLOP/s")


def copies(check: Check) -> None:
    """Measure copies on the device, bytes read and written, and to it from the CPU's memory."""
    size = check.pick(2 * GIB, 2**22)
    source = torch.ones(size // 4, device=check.device)
    target = torch.empty_like(source)
    ms = milliseconds(lambda: target.copy_(source), check.device)
    check.figure("copy on the device, read and written", 2 * size / ms / 1e6, "GB/s")
    for pinned in check.pick((True, False), (False,)):
        host = torch.ones(size // 16, pin_memory=pinned)
        there = target[: size // 16]
        ms = milliseconds(partial(there.copy_, host, non_blocking=True), check.device)
        name = "pinned" if pinned else "pageable"
        check.figure(f"copy to the device, {name}", host.nbytes / ms / 1e6, "GB/s")


PARTS = {"names": names, "clocks": clocks, "products": products, "copies": copies}
