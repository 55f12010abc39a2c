"""What the machine can do: peak arithmetic rate, peak memory, threads, and a compiler toolchain."""

import contextlib
import ctypes
import importlib.util
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from gam_scale.errors import UserError
from gam_scale.model.linear import linear

Precision = Literal["fp32", "bf16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def find_device(name: str) -> torch.device:
    """The device that ``--device`` means: ``auto`` is a GPU where there is one.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise UserError("--device is cuda but torch sees no GPU; expected cpu or auto")
    return torch.device(("cuda" if has_gpu else "cpu") if name == "auto" else name)


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
    second. Ranks that share one CPU should measure at the same time: each then finds its share.
    """
    device = torch.device(device)
    if device.type == "cuda":
        known = data_sheet_peak(torch.cuda.get_device_name(device), precision)
        if known:
            return known
    return _measured_peak(device, precision)


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


def _measured_peak(device: torch.device, precision: Precision) -> Peak:
    """Best rate over square matmuls that double in size until one takes a noticeable time."""
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


def peak_memory_bytes(device: torch.device | str) -> int:
    """Most memory held at once since the last reset: a GPU's tensors, or the process's RSS."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        match = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        if match:
            return int(match[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kB


def allocator_figures(device: torch.device | str) -> dict[str, int]:
    """How torch's allocator is doing on a GPU; nothing for a CPU, which has none.

    Keys: memory_reserved (most bytes taken from the GPU at once, for tensors now or later);
    alloc_retries (how often it had to give back what it kept, and wait, to find room); ooms (how
    often it found none).
    """
    if torch.device(device).type != "cuda":
        return {}
    stats = torch.cuda.memory_stats(device)
    keys = {
        "memory_reserved": "reserved_bytes.all.peak",
        "alloc_retries": "num_alloc_retries",
        "ooms": "num_ooms",
    }
    return {name: stats.get(key, 0) for name, key in keys.items()}


def reset_peak_memory(device: torch.device | str) -> None:
    """Start :func:`peak_memory_bytes` anew; where the system does not allow that, do nothing."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: reset the peak RSS, see proc(5)


def allocated_at_most(function: Callable[[], None]) -> int:
    """Most bytes that the CPU allocator has given out at once since the call began."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def keep_freed_memory() -> None:
    """Have the C library reuse freed tensors rather than hand their pages back to the system.

    By default every tensor above some megabytes is mapped afresh and each of its pages faults when
    first touched. Measured on a training step at the paper's size: 27,500 page faults a step
    become under 500, and the step takes 3.6% less time, at the same peak resident size. A C
    library without ``mallopt`` (not glibc) is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)  # an int: the largest there is


def cpu_threads(local_world_size: int) -> int:
    """Threads for this rank's matmuls: its share of the physical cores the process may use.

    ``OMP_NUM_THREADS`` wins, except for the 1 that torchrun sets by itself for several ranks.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    by_torchrun = asked == "1" and local_world_size > 1 and "TORCHELASTIC_RUN_ID" in os.environ
    if asked.isdigit() and int(asked) > 0 and not by_torchrun:
        return int(asked)
    return max(1, _physical_cores() // local_world_size)


def _physical_cores() -> int:
    """Cores among the CPUs this process is bound to; hyper-threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    try:
        topology = Path("/sys/devices/system/cpu")
        siblings = "topology/thread_siblings_list"
        return len({(topology / f"cpu{i}" / siblings).read_text() for i in cpus})
    except OSError:
        return len(cpus)


def can_compile(device: torch.device | str) -> tuple[bool, str]:
    """Whether torch.compile has what it needs here, and what it has or lacks in one phrase."""
    if torch.device(device).type == "cuda":
        return _can_compile_triton(torch.cuda.get_device_capability(device))
    return _can_compile_cpp()


def _can_compile_triton(capability: tuple[int, int]) -> tuple[bool, str]:
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed"
    if capability < (7, 0):
        return (
            False,
            f"triton needs compute capability 7.0, this GPU has {capability[0]}.{capability[1]}",
        )
    # Triton builds each kernel's launcher as a C extension of Python.
    if not any(shutil.which(cc) for cc in (os.environ.get("CC", "gcc"), "clang")):
        return False, "no C compiler found (gcc or clang)"
    if not _python_header().exists():
        return False, "no Python.h found (python3-dev)"
    return True, "triton"


def _can_compile_cpp() -> tuple[bool, str]:
    """Inductor calls $CXX or else the platform's default; try just that on a small program."""
    default, other = ("clang++", "g++") if sys.platform == "darwin" else ("g++", "clang++")
    compiler = os.environ.get("CXX", default)
    if not shutil.which(compiler):
        if "CXX" in os.environ:
            return False, f"no C++ compiler found (CXX is {compiler})"
        if shutil.which(other):
            return False, f"no C++ compiler found ({default}; set CXX={other} to use that one)"
        return False, f"no C++ compiler found ({default} or {other})"
    if not _python_header().exists():
        return False, "no Python.h found (python3-dev)"
    program = "#include <Python.h>\n#include <omp.h>\nint f() { return omp_get_max_threads(); }\n"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(program)
        flags = ["-fopenmp", "-fPIC", "-shared", f"-I{_python_header().parent}"]
        command = [compiler, *flags, str(source), "-o", str(source.with_suffix(".so"))]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError):
            return False, f"{compiler} cannot build a C++ program with OpenMP"
    return True, compiler


def _python_header() -> Path:
    return Path(sysconfig.get_path("include")) / "Python.h"
