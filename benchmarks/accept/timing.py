"""Time of a function on a device, and which of its kernels take longest."""

import statistics
import time
from collections.abc import Callable

import torch

REPEATS = 10
ENOUGH_S = 1.5
"""Seconds after which a slow function has been timed often enough, but three times at least."""


def milliseconds(
    function: Callable[[], object], device: torch.device, repeats: int = REPEATS, warm_up: int = 2
) -> float:
    """Return the median of single calls, each timed by two events of the device if it has any."""
    for _ in range(warm_up):
        function()
    times: list[float] = []
    begun = time.monotonic()
    while len(times) < repeats and (len(times) < 3 or time.monotonic() - begun < ENOUGH_S):
        times.append(_once(function, device))
    return statistics.median(times)


def _once(function: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end)


def longest(
    function: Callable[[], object], device: torch.device, n: int = 10
) -> list[tuple[str, int, float]]:
    """Return the ``n`` longest kernels of one call (on a CPU: operators), the longest first.

    Each has its name, the number of its runs, and their milliseconds.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    found = []
    for event in profile.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if device.type != "cuda":
            found.append((event.key, event.count, event.self_cpu_time_total / 1e3))
        elif on_gpu:
            found.append((event.key, event.count, event.self_device_time_total / 1e3))
    return sorted(found, key=lambda row: -row[2])[:n]
