"""Statistics of every layer: what its gates decide, how large its activations and gradients are."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gam_scale.data.packing import Batch
from gam_scale.model.block import Block
from gam_scale.model.layout import Layout
from gam_scale.run.records import QUANTILES, LayerRecord
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.sinks import MetricLog
from gam_scale.train.step import StepResult

TOKENS = 1024
"""Of each row, at most, that a layer's gates are looked at for."""
MOST_VALUES = 1 << 16
"""Of which quantiles are taken: sorting a million for each gate took as long as half a step."""


class LayerStatistics(Hook):
    """Every ``log.layers_every`` steps, of the main rank's first micro-batch.

    ``activation`` is the root mean square of a layer's output per token, ``gradient`` the length
    per token of the gradient of the batch's summed loss in that output. All else is what a block's
    own ``statistics(x, layout)`` says of its input (B, T, d): tensors (values, heads) by name.

    A block is listened to from outside, where it is called, so that it may be compiled, recomputed
    or sharded: what an engine gathers for it is there. The run's numbers stay as they are, and the
    host waits for the device after those steps only, to read the figures.

    Args:
        log: where they go.
        check_lock: as that of :class:`~gam_scale.train.hooks.lines.Lines`.
    """

    def __init__(self, log: MetricLog, check_lock: Callable[[], None]) -> None:
        self._log, self._check_lock = log, check_lock
        self._listeners: list[_Listener] = []
        self._handles: list[RemovableHandle] = []

    def before_step(self, loop: Loop, batches: list[Batch]) -> list[Batch]:
        """Listen to the blocks, if it is time to."""
        every, step = loop.config.log.layers_every, loop.state.step + 1
        if every and step % every == 0 and loop.world.is_main:
            module = loop.strategy.module
            self._loss = _Loss()
            self._listeners = [_Listener(self._loss) for _ in module.blocks]
            self._handles = [module.register_forward_hook(self._loss)]
            for block, listener in zip(module.blocks, self._listeners, strict=True):
                self._handles += listener.listen(block)
        return batches

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def between(self, loop: Loop) -> None:
        """Read what was heard, for which the device is waited for."""
        if not self._listeners:
            return
        heard = [listener.figures for listener in self._listeners]
        self._listeners = []
        with loop.clock.paused():
            self._check_lock()
            self._log.layers(loop.state.step, [_read(figures) for figures in heard])

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Leave the blocks as they were."""
        for handle in self._handles:
            handle.remove()


class _Loss:
    """The model's output, whose gradient engines scale each in their own way."""

    scale: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.scale is None and output.requires_grad:
            output.register_hook(partial(setattr, self, "scale"))


class _Listener:
    """What one block's first call in a step shows."""

    def __init__(self, loss: _Loss) -> None:
        self.figures: dict[str, Tensor] = {}
        self._loss = loss

    def listen(self, block: Block) -> list[RemovableHandle]:
        return [
            block.register_forward_pre_hook(self._before),
            block.register_forward_hook(self._after),
        ]

    def _before(self, block: Block, args: tuple[Any, ...]) -> None:
        # An engine has gathered the block's parameters by now, and frees them right after it.
        if "activation" in self.figures:
            return
        x, layout = args[0].detach(), args[1]
        assert isinstance(layout, Layout)
        length = min(TOKENS, x.shape[1])
        device = x.device.type
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        # A weight that autocast casts here, without gradients, must not be taken for the step's.
        with torch.no_grad(), torch.autocast(device, dtype, enabled, cache_enabled=False):
            values = block.statistics(x[:, :length], layout.segments(length)[0])
            self.figures |= {name: quantiles(value) for name, value in values.items()}

    def _after(self, block: Block, args: tuple[Any, ...], y: Tensor) -> None:
        if "activation" in self.figures:
            return
        size = y.detach().float().square().mean(-1).sqrt()
        self.figures["activation"] = quantiles(size.reshape(-1, 1))
        if y.requires_grad:
            y.register_hook(self._gradient)

    def _gradient(self, gradient: Tensor) -> None:
        lengths = gradient.detach().float().norm(dim=-1).reshape(-1, 1)
        assert self._loss.scale is not None
        self.figures["gradient"] = quantiles(lengths / self._loss.scale.float())


def quantiles(values: Tensor) -> Tensor:
    """(values, heads) -> (1 + heads, quantiles): of all values, and of each head's.

    Of more than :data:`MOST_VALUES` every second one is taken, every third one, and so on, by a
    step that shares no factor with their number, so with no width that divides it: some channels of
    a row would never have their turn.
    """
    step = -(-values.numel() // MOST_VALUES)
    while math.gcd(step, len(values)) > 1:
        step += 1
    values = values.detach().float()[::step]
    return torch.stack([_quantiles(values.flatten()), *map(_quantiles, values.unbind(1))])


def _quantiles(values: Tensor) -> Tensor:
    ordered = values.sort().values
    last = len(ordered) - 1
    return torch.stack([ordered[round(share * last)] for share in QUANTILES])


def _read(figures: Mapping[str, Tensor]) -> LayerRecord:
    layer: LayerRecord = {}
    for name, value in figures.items():
        rows = [[q if math.isfinite(q) else None for q in row] for row in value.tolist()]
        layer[name] = {"all": rows[0]}
        if len(rows) > 2:
            layer[name]["heads"] = rows[1:]
    return layer
