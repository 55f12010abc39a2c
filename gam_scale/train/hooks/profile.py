"""A few steps under torch's profiler: each rank's trace, and in its log what took longest."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from gam_scale.train.loop import Hook, Loop

logger = logging.getLogger("gam_scale")

LONGEST = 10
"""Number of kernels, or operators, that the log names."""
NAME = 100
"""Most characters to log of a kernel's name: templates have long ones."""


class StepProfile(Hook):
    """Profiles the steps that ``train.profile`` names, with all that happens until they are over.

    Each rank writes a chrome trace, ``steps-A-B-rankN.json.gz``, to ``folder``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._profile: profile | None = None
        self._step: record_function | None = None

    def start(self, loop: Loop) -> None:
        """Read from the config which steps to profile."""
        self._first, self._last = loop.config.train.profile or (0, -1)

    def before_batch(self, loop: Loop) -> None:
        """Begin to profile if the step is one of those."""
        number = loop.state.step + 1
        if not self._first <= number <= self._last:
            return
        if self._profile is None:
            self._begin(loop, number)
        self._step = record_function(f"step {number}")
        self._step.__enter__()

    def over(self, loop: Loop) -> None:
        """End the step's mark in the trace; after the last of the steps, write the trace."""
        if self._step is not None:
            self._end_step()
            if loop.state.step >= self._last:
                self._end(loop)

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Write the trace if the run ends before the last of the steps."""
        self._end_step()
        self._end(loop)

    def _end_step(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _begin(self, loop: Loop, number: int) -> None:
        with loop.clock.paused():
            activities = [ProfilerActivity.CPU]
            if loop.world.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._began = number
            self._profile = profile(activities=activities)
            self._profile.start()

    def _end(self, loop: Loop) -> None:
        if self._profile is None:
            return
        with loop.clock.paused():
            done, self._profile = self._profile, None
            done.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"steps-{self._began}-{self._last}-rank{loop.world.rank}.json.gz"
            done.export_chrome_trace(str(self._folder / name))
            rows = longest(done.key_averages(), loop.world.device)
            logger.info("%s; what took longest:\n%s", self._folder / name, "\n".join(rows))


def longest(events: Sequence[Any], device: torch.device) -> list[str]:
    """Return a line for each kernel (on a CPU, operator) that took longest, by its own time only.

    Args:
        events: averages by name, as the profiler gives them.
        device: the device whose time counts.
    """
    on_gpu = device.type == "cuda"
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    times = [
        (each.self_device_time_total if on_gpu else each.self_cpu_time_total, each)
        for each in events
        if each.device_type == kind and not each.is_user_annotation
    ]
    total = sum(time for time, _ in times) or 1.0
    times.sort(key=lambda row: -row[0])
    return [
        f"{time / 1e3:10.2f} ms {time / total:6.1%} {each.count:8,} x  {each.key[:NAME]}"
        for time, each in times[:LONGEST]
    ]
