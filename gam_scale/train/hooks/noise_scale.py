"""The gradient noise scale: the number of targets in a batch above which more gain little."""

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
"""Share of the earlier measurements' sums that each new one keeps, so that about ten count."""


class Noise(NamedTuple):
    """Unbiased estimates from one step; each may be below 0."""

    variance: float
    """Variance of one target's gradient over all parameters: the trace of its covariance."""
    square: float
    """Squared length of the gradient that an endless batch would have."""


def estimate(small: float, norm: float, targets: int, parts: int) -> Noise:
    """Estimate the noise V and the signal |G|^2 of gradients from a batch and its parts.

    For a batch of n targets, E|g|^2 = |G|^2 + V / n (arXiv 1812.06162, appendix A.1); for its k
    parts, of n_i targets each, the mean of |g_i|^2 weighted by n_i is |G|^2 + V k / n.

    Args:
        small: the weighted mean of |g_i|^2.
        norm: |g|, of the whole batch.
        targets: n.
        parts: k, at least 2.
    """
    variance = targets * (small - norm**2) / (parts - 1)
    return Noise(variance, norm**2 - variance / targets)


class PartNorms:
    """Measures the squared length of each micro-batch's own gradient during one step.

    A torch hook on a parameter receives what one backward pass adds to its gradient, before engines
    sum, average or cut it. All results stay on the device.

    Args:
        module: the model, whose parameters' gradients are whole on this rank.
        targets: number of targets of each micro-batch, in order.
    """

    def __init__(self, module: nn.Module, targets: Sequence[int]) -> None:
        self._targets, self._part = targets, -1
        self._norms: list[list[Tensor]] = [[] for _ in targets]
        self._scales: list[Tensor] = []
        self._handles: list[RemovableHandle] = [module.register_forward_hook(self._begin)]
        self._handles += [p.register_hook(self._add) for p in module.parameters()]

    def _begin(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        self._part += 1
        output.register_hook(self._scales.append)  # each engine scales the loss in its own way

    def _add(self, gradient: Tensor) -> None:
        norm = torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32)
        self._norms[self._part].append(norm)

    def stop(self) -> None:
        """Remove the torch hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self) -> tuple[float, int]:
        """Wait; return the sum of n_i |g_i|^2 (g_i of the mean loss) and the parts with targets."""
        total, parts = 0.0, 0
        for n, norms, scale in zip(self._targets, self._norms, self._scales, strict=True):
            if n:
                square = float(_wide(torch.stack(norms)).square().sum())
                total, parts = total + square / float(scale) ** 2 / n, parts + 1
        return total, parts


def _wide(x: Tensor) -> Tensor:
    return x.to(widest(x.device))


class NoiseScale(Hook):
    """Measures the noise scale over all ranks' micro-batches every ``log.noise_every`` steps.

    The step's line gets its ``grad_variance`` and ``grad_square``, see :class:`Noise`, and
    ``noise_scale`` in targets: the sum of variances over the sum of squares of about ten
    measurements, since a mean of ratios would be biased. The host waits for the device after those
    steps only.
    """

    _listener: PartNorms | None = None
    _noise: Noise | None = None

    def start(self, loop: Loop) -> None:
        """Go on from the checkpoint's sums."""
        self._sums = Noise(*(loop.state.noise or (0.0, 0.0)))

    def before_step(self, loop: Loop, batches: list[Batch]) -> list[Batch]:
        """Attach the torch hooks if a measurement is due."""
        every, step = loop.config.log.noise_every, loop.state.step + 1
        if every and step % every == 0:
            targets = [batch.num_targets for batch in batches]
            self._listener = PartNorms(loop.strategy.module, targets)
        return batches

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Remove the torch hooks, and keep the step's result."""
        if self._listener is not None:
            self._listener.stop()
            self._result = result

    def between(self, loop: Loop) -> None:
        """Read the measurement, for which the host waits for the device, and ask for a line."""
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
        """Add this step's measurement and the noise scale."""
        if self._noise is not None:
            variance, square = self._sums
            figures["grad_variance"], figures["grad_square"] = self._noise
            figures["noise_scale"] = variance / square if square > 0 else math.nan

    def saves(self, loop: Loop, state: TrainState) -> TrainState:
        """Return the state with the sums, once there are any."""

        return replace(state, noise=list(self._sums)) if any(self._sums) else state

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Remove the torch hooks that an error has left."""
        if self._listener is not None:
            self._listener.stop()
