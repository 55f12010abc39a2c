"""Peaks, memory, threads and toolchains, with the parts of other machines put in by hand."""

import mmap
import os
import subprocess
import sys

import pytest
import torch

from gam_scale import hardware
from gam_scale.hardware import (
    can_compile,
    cpu_threads,
    device_peak_flops,
    peak_memory_bytes,
    reset_peak_memory,
)


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(name)`` makes torch name its GPU so; measuring is a fixed figure."""

    def pretend(name: str) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)

    measured = hardware.Peak(1.0, "measured")
    monkeypatch.setattr(hardware, "_measured_peak", lambda device, precision: measured)
    return pretend


@pytest.mark.parametrize(
    ("name", "bf16", "fp32", "label"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4, 67, "H100 SXM"),
        ("NVIDIA H100 PCIe", 756, 51, "H100 PCIe"),
        ("NVIDIA H200", 989.4, 67, "H200 SXM"),
        ("NVIDIA H200 NVL", 835.5, 60, "H200 NVL"),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5, "A100"),
        ("NVIDIA A10", 125, 31.2, "A10"),
        ("NVIDIA L40S", 362, 91.6, "L40S"),
        ("NVIDIA L4", 121, 30.3, "L4"),
        ("NVIDIA GeForce RTX 3090", 71, 35.6, "RTX 3090"),
    ],
)
def test_known_gpus_have_their_dense_data_sheet_rate(gpu, name, bf16, fp32, label):
    gpu(name)
    assert device_peak_flops("cuda", "bf16") == (bf16 * 1e12, f"{label} data sheet")
    assert device_peak_flops("cuda", "fp32") == (fp32 * 1e12, f"{label} data sheet")


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A10G",  # neither an A10 nor an A100
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a slice of one
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA H20",
        "Some GPU 9000",
    ],
)
def test_other_gpus_are_measured(gpu, name):
    gpu(name)
    assert device_peak_flops("cuda", "bf16").source == "measured"


def test_a_gpu_without_bf16_units_is_measured_in_bf16(gpu):
    gpu("Tesla V100-SXM2-16GB")
    assert device_peak_flops("cuda", "bf16").source == "measured"
    assert device_peak_flops("cuda", "fp32") == (15.7e12, "V100 SXM data sheet")


def test_fp32_means_tf32_only_where_torch_may_use_it(gpu):
    gpu("NVIDIA A100-SXM4-80GB")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert device_peak_flops("cuda", "fp32").flops == 156e12
    finally:
        torch.set_float32_matmul_precision(before)
    assert device_peak_flops("cuda", "fp32").flops == 19.5e12


def test_the_measured_rate_is_the_best_size(monkeypatch):
    seconds = {512: 0.001, 1024: 0.01, 2048: 0.06}  # the last is slow enough to stop after
    monkeypatch.setattr(hardware, "_matmul_seconds", lambda n, dtype, device: seconds[n])
    flops, source = device_peak_flops("cpu", "fp32")
    assert flops == pytest.approx(2 * 2048**3 / 0.06)
    assert source == "measured 2048^3 matmul"


def test_this_cpu_has_a_plausible_rate():
    # Between a millionth and a thousand times what one CPU core does: a unit error would show.
    assert (
        1e7 < 2 * 256**3 / hardware._matmul_seconds(256, torch.float32, torch.device("cpu")) < 1e14
    )


def test_peak_memory_sees_an_allocation_and_forgets_it_on_reset():
    slack = 4 << 20  # the kernel counts pages in batches
    reset_peak_memory("cpu")  # of earlier tests in this process
    # Mapped, so that closing it gives it back: malloc keeps what it frees once a run has begun.
    block = mmap.mmap(-1, 200 << 20)
    block[:: mmap.PAGESIZE] = b"x" * (len(block) // mmap.PAGESIZE)
    assert peak_memory_bytes("cpu") > 200 << 20
    high = peak_memory_bytes("cpu")
    block.close()
    assert peak_memory_bytes("cpu") > high - slack
    reset_peak_memory("cpu")  # where the system does not allow it, nothing changes
    assert peak_memory_bytes("cpu") < high + slack
    if sys.platform == "linux" and os.access("/proc/self/clear_refs", os.W_OK):
        assert peak_memory_bytes("cpu") < high - (100 << 20)


def test_peak_memory_without_proc_is_in_bytes_too(monkeypatch):
    from_proc = peak_memory_bytes("cpu")

    class NoProc:
        def __init__(self, path):
            pass

        def read_text(self):
            raise FileNotFoundError

    monkeypatch.setattr(hardware, "Path", NoProc)
    # ru_maxrss is not reset with VmHWM and may be larger, but not by the 1024 of a unit error.
    assert from_proc / 100 < peak_memory_bytes("cpu") < from_proc * 100


def test_threads_share_the_physical_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(hardware, "_physical_cores", lambda: 8)
    assert [cpu_threads(n) for n in (1, 3, 8, 9)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu_threads(4) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cpu_threads(4) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun sets 1 by itself
    assert cpu_threads(4) == 2


def test_hyper_threads_of_a_core_count_once(monkeypatch, tmp_path):
    assert 1 <= hardware._physical_cores() <= (os.cpu_count() or 1)
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no CPU affinity")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path)
    assert hardware._physical_cores() == 2


def script(folder, name: str, exit_code: int) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    path.chmod(0o755)


@pytest.fixture
def toolchain(monkeypatch, tmp_path):
    """A PATH with nothing on it, on Linux, and a Python.h."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(hardware, "_python_header", lambda: tmp_path / "Python.h")
    return tmp_path


def test_cpu_without_a_compiler(toolchain, monkeypatch):
    assert can_compile("cpu") == (False, "no C++ compiler found (g++ or clang++)")
    script(toolchain, "clang++", 0)  # Inductor would not look for it by itself
    assert can_compile("cpu") == (
        False,
        "no C++ compiler found (g++; set CXX=clang++ to use that one)",
    )
    monkeypatch.setenv("CXX", "icpx")
    assert can_compile("cpu") == (False, "no C++ compiler found (CXX is icpx)")


def test_cpu_with_a_compiler(toolchain, monkeypatch):
    script(toolchain, "g++", 0)
    assert can_compile("cpu") == (True, "g++")
    script(toolchain, "g++", 1)
    assert can_compile("cpu") == (False, "g++ cannot build a C++ program with OpenMP")
    script(toolchain, "clang++", 0)
    monkeypatch.setenv("CXX", "clang++")
    assert can_compile("cpu") == (True, "clang++")
    (toolchain / "Python.h").unlink()
    assert can_compile("cpu") == (False, "no Python.h found (python3-dev)")


def test_gpu_toolchains(toolchain, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: None)
    assert can_compile("cuda") == (False, "triton is not installed")
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: object())
    assert can_compile("cuda") == (False, "no C compiler found (gcc or clang)")
    script(toolchain, "gcc", 0)
    assert can_compile("cuda") == (True, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (6, 1))
    assert can_compile("cuda")[1] == "triton needs compute capability 7.0, this GPU has 6.1"


def test_freed_memory_is_reused():
    script = """
import resource, torch
from gam_scale.hardware import keep_freed_memory
keep_freed_memory()
for _ in range(60):
    torch.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", s], stdout=subprocess.PIPE, check=True).stdout)
        for s in (script, script.replace("\nkeep_freed_memory()", ""))
    )
    # Sixty tensors of 8192 pages each, all but the first few in memory that is there already.
    assert given_back - kept > 30 * 8192
