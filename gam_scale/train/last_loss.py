"""The losses of the last steps, read without waiting for the device that computes them."""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """A rank's part of a step's loss: summed over its targets, divided by those of all ranks."""

    step: int
    value: float


class _Copied(NamedTuple):
    step: int
    value: Tensor  # on the CPU
    arrived: torch.cuda.Event | None


class LastLosses:
    """Keeps the losses of the last steps until the host takes them, each once and in order.

    On a CPU the last step's loss needs no wait. A GPU still computes the last step when the host
    prepares the next, so there it is the loss of the step before, which was copied right after that
    step.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._lag = int(self._on_gpu)  # of the newest losses, how many need a wait
        self._copies: deque[_Copied] = deque()

    def put(self, step: int, loss: Tensor) -> None:
        """Add the loss of ``step``, a scalar on the device."""
        if not self._on_gpu:
            self._copies.append(_Copied(step, loss, None))
            return
        value = torch.empty((), dtype=loss.dtype).pin_memory()
        value.copy_(loss, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._copies.append(_Copied(step, value, arrived))

    def take(self) -> Loss:
        """Take the oldest loss if it needs no wait; NaN, of step 0, if there is none."""
        return self._first() if len(self._copies) > self._lag else Loss(0, math.nan)

    def take_all(self) -> list[Loss]:
        """Take all losses, for which the host waits."""
        return [self._first() for _ in range(len(self._copies))]

    def _first(self) -> Loss:
        step, value, arrived = self._copies.popleft()
        if arrived is not None:
            arrived.synchronize()  # returns at once, unless the host is a whole step ahead
        return Loss(step, float(value))
