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
"""Most tokens of each row for which a layer's statistics are taken."""
MOST_VALUES = 1 << 16
"""Most values to take quantiles of: sorting a million for each gate took as long as half a step."""


class LayerStatistics(Hook):
    """Logs statistics of the main rank's first micro-batch every ``log.layers_every`` steps.

    ``activation`` is the root mean square of a layer's output per token, ``gradient`` the length
    per token of the gradient of the batch's summed loss in that output. All others come from a
    block's own ``statistics(x, layout)`` of its input (B, T, d): tensors (values, heads) by name.

    Hooks of torch observe a block from outside, where it is called. The block may be compiled,
    recomputed or sharded, since by then an engine has gathered its parameters. The run's numbers do
    not change, and the host waits for the device after those steps only, to read the figures.

    Args:
        log: receives the statistics.
        check_lock: as for :class:`~gam_scale.train.hooks.lines.Lines`.
    """

    def __init__(self, log: MetricLog, check_lock: Callable[[], None]) -> None:
        self._log, self._check_lock = log, check_lock
        self._listeners: list[_Listener] = []
        self._handles: list[RemovableHandle] = []

    def before_step(self, loop: Loop, batches: list[Batch]) -> list[Batch]:
        """Attach listeners to the blocks if statistics are due."""
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
        """Detach the listeners."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def between(self, loop: Loop) -> None:
        """Read and log the listeners' figures, for which the host waits for the device."""
        if not self._listeners:
            return
        heard = [listener.figures for listener in self._listeners]
        self._listeners = []
        with loop.clock.paused():
            self._check_lock()
            self._log.layers(loop.state.step, [_read(figures) for figures in heard])

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Detach the listeners that an error has left."""
        for handle in self._handles:
            handle.remove()


class _Loss:
    """Keeps the gradient of the model's output: the scale that the engine gives the summed loss."""

    scale: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.scale is None and output.requires_grad:
            output.register_hook(partial(setattr, self, "scale"))


class _Listener:
    """Keeps the figures of one block's first call in a step."""

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
        # The step must not reuse a weight that autocast has cast here, without gradients.
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
    """Return the quantiles of (values, heads) as (1 + heads, quantiles): of all, then of each head.

    If there are more than :data:`MOST_VALUES`, every n-th is taken. This n shares no factor with
    the number of values, and so none with a width that divides it; otherwise some channels would
    never be taken.
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
