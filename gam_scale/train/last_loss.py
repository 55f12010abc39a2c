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


class LastLoss:
    """Keeps the losses of a few steps and returns the newest that needs no wait.

    On a CPU this is the last step's loss. A GPU still computes the last step when the host prepares
    the next, so there it is the loss of the step before, which was copied right after that step.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._copies: deque[_Copied] = deque(maxlen=2 if self._on_gpu else 1)

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

    def get(self) -> Loss:
        """Return the newest loss that needs no wait; NaN, of step 0, before there is one."""
        if len(self._copies) < (self._copies.maxlen or 0):
            return Loss(0, math.nan)
        step, value, arrived = self._copies[0]
        if arrived is not None:
            arrived.synchronize()  # returns at once, unless the host is a whole step ahead
        return Loss(step, float(value))
