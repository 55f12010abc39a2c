"""The gradient noise scale: how many targets a batch may have before more of them gain little."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gam_scale.checkpoint.state import TrainState
from gam_scale.data.packing import Batch
from gam_scale.model.widest import widest
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult

KEPT = 0.9
"""Of the sums of earlier measurements at the next one: about ten of them count."""


class Noise(NamedTuple):
    """Unbiased estimates from one step; each may be below 0."""

    variance: float
    """Of the gradient of one target, summed over all parameters: the trace of its covariance."""
    square: float
    """Squared length of the gradient that an endless batch would have."""


def estimate(small: float, norm: float, targets: int, parts: int) -> Noise:
    """Noise and signal of gradients, from a batch and the parts that it is made of.

    For a batch of n targets, E|g|^2 = |G|^2 + V / n (arXiv 1812.06162, appendix A.1); for its k
    parts, of n_i targets each, the mean of |g_i|^2 weighted by n_i is |G|^2 + V k / n.

    Args:
        small: that weighted mean.
        norm: |g|, of the whole batch.
        targets: n.
        parts: k, at least 2.
    """
    variance = targets * (small - norm**2) / (parts - 1)
    return Noise(variance, norm**2 - variance / targets)


class PartNorms:
    """Listens to one step's backward passes: squared lengths of each micro-batch's own gradient.

    A hook on a parameter is given what one backward pass adds to its gradient, before engines sum,
    average or cut it; all stays on the device.

    Args:
        module: the model, whose parameters' gradients are whole on this rank.
        targets: of each micro-batch, in order.
    """

    def __init__(self, module: nn.Module, targets: Sequence[int]) -> None:
        self._targets, self._part = targets, -1
        self._norms: list[list[Tensor]] = [[] for _ in targets]
        self._scales: list[Tensor] = []
        self._handles: list[RemovableHandle] = [module.register_forward_hook(self._begin)]
        self._handles += [p.register_hook(self._add) for p in module.parameters()]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._part += 1
        output.register_hook(self._scales.append)  # engines scale the loss each in their own way

    def _add(self, gradient: Tensor) -> None:
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
        self._norms[self._part].append(norm)

    def stop(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self) -> tuple[float, int]:
        """Sum of n_i |g_i|^2, g_i of the mean loss, and the parts that have targets; waits."""
        total, parts = 0.0, 0
        for n, norms, scale in zip(self._targets, self._norms, self._scales, strict=True):
            if n:
                square = float(_wide(torch.stack(norms)).square().sum())
                total, parts = total + square / float(scale) ** 2 / n, parts + 1
        return total, parts


def _wide(x: Tensor) -> Tensor:
    return x.to(widest(x.device))


class NoiseScale(Hook):
    """Every ``log.noise_every`` steps, of the gradients of all ranks' micro-batches.

    A line has that step's ``grad_variance`` and ``grad_square``, see :class:`Noise`, and
    ``noise_scale``, variance over square of about ten measurements, in targets: the ratio of sums,
    since a mean of ratios would be biased. The host waits for the device after those steps only.
    """

    _listener: PartNorms | None = None
    _noise: Noise | None = None

    def start(self, loop: Loop) -> None:
        """Go on from the checkpoint's sums."""
        self._sums = Noise(*(loop.state.noise or (0.0, 0.0)))

    def before_step(self, loop: Loop, batches: list[Batch]) -> list[Batch]:
        """Listen, if it is time to."""
        every, step = loop.config.log.noise_every, loop.state.step + 1
        if every and step % every == 0:
            targets = [batch.num_targets for batch in batches]
            self._listener = PartNorms(loop.strategy.module, targets)
        return batches

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.stop()
            self._result = result

    def between(self, loop: Loop) -> None:
        """Read what was heard, for which the device is waited for, and have a line logged."""
        self._noise = None
        if self._listener is None:
            return
        with loop.clock.paused():
            total, parts = loop.world.sum(*self._listener.read())
            norm, n = float(self._result.grad_norm), self._result.n_targets
        self._listener = None
        if parts > 1 and math.isfinite(norm) and math.isfinite(total):
            self._noise = estimate(total / n, norm, n, int(parts))
            pairs = zip(self._sums, self._noise, strict=True)
            self._sums = Noise(*(KEPT * old + new for old, new in pairs))
            loop.ask("line")

    def line(self, loop: Loop, figures: dict[str, Any]) -> None:
        """Add this step's."""
        if self._noise is not None:
            variance, square = self._sums
            figures["grad_variance"], figures["grad_square"] = self._noise
            figures["noise_scale"] = variance / square if square > 0 else math.nan

    def saves(self, loop: Loop, state: TrainState) -> TrainState:
        """With the sums, once there are any."""

        return replace(state, noise=list(self._sums)) if any(self._sums) else state

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Leave the parameters as they were."""
        if self._listener is not None:
            self._listener.stop()
