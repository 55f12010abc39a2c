"""The losses of the last steps, read where the device that computes them is not waited for."""

import math
from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor


class Loss(NamedTuple):
    """One step's, over this rank's targets as a share of all."""

    step: int
    value: float


class _Copied(NamedTuple):
    step: int
    value: Tensor  # on the CPU
    arrived: torch.cuda.Event | None


class LastLoss:
    """Keeps the losses of a few steps, and gives the newest one that is there without a wait.

    On a CPU that is the last step's. A GPU still computes that step when the host prepares the
    next: the one before it is given, whose copy to the host came behind its own work.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._copies: deque[_Copied] = deque(maxlen=2 if self._on_gpu else 1)

    def put(self, step: int, loss: Tensor) -> None:
        """The loss of ``step``, a scalar on the device."""
        if not self._on_gpu:
            self._copies.append(_Copied(step, loss, None))
            return
        value = torch.empty((), dtype=loss.dtype).pin_memory()
        value.copy_(loss, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._copies.append(_Copied(step, value, arrived))

    def get(self) -> Loss:
        """The newest that is there; NaN, of step 0, before there is one."""
        if len(self._copies) < (self._copies.maxlen or 0):
            return Loss(0, math.nan)
        step, value, arrived = self._copies[0]
        if arrived is not None:
            arrived.synchronize()  # past, unless the host is a whole step ahead
        return Loss(step, float(value))
