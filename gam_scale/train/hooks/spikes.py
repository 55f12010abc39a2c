"""Loss spikes: if a step's loss is far above those before it, the run rolls back."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from gam_scale.checkpoint.state import TrainState
from gam_scale.train.last_loss import LastLosses, Loss
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult

logger = logging.getLogger("gam_scale")

WINDOW = 32
"""Number of losses with which a loss is compared."""


class SpikeDetector:
    """Compares each loss with the median of the last ``window``, once there are that many."""

    def __init__(self, ratio: float, window: int, losses: Iterable[float] = ()) -> None:
        """Take up the ``losses`` before; for ``ratio`` see ``train.spike_ratio``."""
        self.ratio = ratio
        self.losses = deque(losses, maxlen=window)

    def is_spike(self, loss: float) -> bool:
        """Return whether ``loss`` is a spike; if not, and if finite, it joins the last losses."""
        full = len(self.losses) == self.losses.maxlen
        if self.ratio > 0 and full and loss > self.ratio * statistics.median(self.losses):
            return True
        if math.isfinite(loss):
            self.losses.append(loss)
        return False


class Spikes(Hook):
    """Ends the loop if the newest loss that needs no wait, summed over ranks, is a spike.

    No checkpoint is saved of a state whose own loss is a spike: the run would go back to it.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window

    def start(self, loop: Loop) -> None:
        """Begin with the losses before the step that the loop starts from."""
        ratio, state = loop.config.train.spike_ratio, loop.state
        self._detector = SpikeDetector(ratio, self.window, state.last_losses)
        self._losses, self._recent = LastLosses(loop.world.device), Loss(0, math.nan)
        self._stage = loop.batches.stage(max(state.step - 1, 0))

    def ballot(self, loop: Loop) -> float:
        """Return this rank's share of the newest loss that needs no wait."""
        self._recent = self._losses.take()
        return self._recent.value

    def agreed(self, loop: Loop, total: float) -> None:
        """End the loop if the summed loss is a spike; the run then rolls back."""
        if self._is_spike(loop, self._recent.step, total):
            loop.finish("spiked")

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Keep the step's loss if spikes are looked for."""
        if self._detector.ratio:
            self._losses.put(loop.state.step, result.loss_sum / result.n_targets)

    def accepts(self, loop: Loop) -> bool:
        """Return whether no loss up to this step is a spike; if one is, end the loop."""
        for loss in self._losses.take_all():  # as many on all ranks
            (total,) = loop.world.sum(loss.value)
            if self._is_spike(loop, loss.step, total):
                if loop.outcome is None:
                    loop.finish("spiked")
                return False
        return True

    def saves(self, loop: Loop, state: TrainState) -> TrainState:
        """Return the state with the last losses."""
        return replace(state, last_losses=list(self._detector.losses))

    def _is_spike(self, loop: Loop, step: int, loss: float) -> bool:
        stage = loop.batches.stage(max(step - 1, 0))
        if step and stage != self._stage:  # other lengths and other text have other losses
            self._stage = stage
            self._detector.losses.clear()
        if spike := self._detector.is_spike(loss):
            logger.warning("step %d has a loss of %.3f, a spike", step, loss)
        return spike
