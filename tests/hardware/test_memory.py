"""Peak memory, its reset, memory of the host, and freed memory that is used again."""

import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import psutil

from gam_scale.hardware import memory
from gam_scale.hardware.memory import host_memory_in_use, peak_memory_bytes, reset_peak_memory


def test_peak_memory_sees_an_allocation_and_forgets_it_on_reset():
    slack = 4 << 20  # the kernel counts pages in batches
    reset_peak_memory("cpu")  # of earlier tests in this process
    # Mapped, so that closing gives the memory back: once a run has begun, malloc keeps its own.
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

    monkeypatch.setattr(memory, "Path", NoProc)
    # ru_maxrss is not reset with VmHWM and may be larger, but not by the 1024 of a unit error.
    assert from_proc / 100 < peak_memory_bytes("cpu") < from_proc * 100


def test_memory_in_use_is_what_is_not_available(monkeypatch):
    sizes = SimpleNamespace(total=8000, free=1000, available=6000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: sizes)
    assert host_memory_in_use() == 0.25


def test_freed_memory_is_reused():
    script = """
import resource, torch
from gam_scale.hardware.memory import keep_freed_memory
keep_freed_memory()
for _ in range(60):
    torch.ones(1 << 23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", s], stdout=subprocess.PIPE, check=True).stdout)
        for s in (script, script.replace("\nkeep_freed_memory()", ""))
    )
    # Sixty tensors of 8192 pages each, all but the first few in memory that was freed before.
    assert given_back - kept > 30 * 8192
