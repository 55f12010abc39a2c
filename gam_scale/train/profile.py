"""A few steps under torch's profiler: a trace of each rank, and what took longest in its log."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from gam_scale.parallel.world import World

logger = logging.getLogger("gam_scale")

LONGEST = 10
"""Kernels, or operators, that the log names."""
NAME = 100
"""Most characters of a kernel's: templates have long ones."""


class StepProfile:
    """Profiles the steps that ``train.profile`` names; a context manager around a run.

    Args:
        steps: the first and the last of them; empty: none.
        folder: gets each rank's ``steps-A-B-rankN.json.gz``, a chrome trace.
        paused: around what is no training.
    """

    def __init__(
        self,
        steps: Sequence[int],
        folder: Path,
        world: World,
        paused: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._first, self._last = steps or (0, -1)
        self._folder, self._world, self._paused = folder, world, paused
        self._profile: profile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()  # a run may end before the last of the steps

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around all that a step does."""
        if not self._first <= number <= self._last:
            yield
            return
        if self._profile is None:
            self._begin(number)
        with record_function(f"step {number}"):
            yield
        if number == self._last:
            self._end()

    def _begin(self, number: int) -> None:
        with self._paused():
            activities = [ProfilerActivity.CPU]
            if self._world.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self._began = number
            self._profile = profile(activities=activities)
            self._profile.start()

    def _end(self) -> None:
        if self._profile is None:
            return
        with self._paused():
            done, self._profile = self._profile, None
            done.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"steps-{self._began}-{self._last}-rank{self._world.rank}.json.gz"
            done.export_chrome_trace(str(self._folder / name))
            rows = longest(done.key_averages(), self._world.device)
            logger.info("%s; what took longest:\n%s", self._folder / name, "\n".join(rows))


def longest(events: Sequence[Any], device: torch.device) -> list[str]:
    """The kernels that took longest, on a CPU the operators: a line each, their own time only.

    Args:
        events: averages by name, as the profiler gives them.
        device: whose time counts.
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
