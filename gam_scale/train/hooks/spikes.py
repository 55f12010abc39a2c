"""Loss spikes: if a step's loss is far above those before it, the run rolls back."""

import logging
import math
import statistics
from collections import deque

from gam_scale.train.last_loss import LastLoss, Loss
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult

logger = logging.getLogger("gam_scale")

WINDOW = 32


class SpikeDetector:
    """Compares each loss with the median of the last ``window``, once there are that many."""

    def __init__(self, ratio: float, window: int) -> None:
        """``ratio``: see ``train.spike_ratio``."""
        self.ratio = ratio
        self._losses: deque[float] = deque(maxlen=window)

    def is_spike(self, loss: float) -> bool:
        """Return whether ``loss`` is a spike; if not, and if finite, it joins the last losses."""
        full = len(self._losses) == self._losses.maxlen
        if self.ratio > 0 and full and loss > self.ratio * statistics.median(self._losses):
            return True
        if math.isfinite(loss):
            self._losses.append(loss)
        return False


class Spikes(Hook):
    """Ends the loop if the newest loss that needs no wait, summed over ranks, is a spike."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window

    def start(self, loop: Loop) -> None:
        """Begin without any losses."""
        self._detector = SpikeDetector(loop.config.train.spike_ratio, self.window)
        self._losses, self._recent = LastLoss(loop.world.device), Loss(0, math.nan)

    def ballot(self, loop: Loop) -> float:
        """Return this rank's share of the newest loss that needs no wait."""
        self._recent = self._losses.get()
        return self._recent.value

    def agreed(self, loop: Loop, total: float) -> None:
        """End the loop if the summed loss is a spike; the run then rolls back."""
        if self._detector.is_spike(total):
            logger.warning("step %d has a loss of %.3f, a spike", self._recent.step, total)
            loop.finish("spiked")

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Keep the step's loss if spikes are looked for."""
        if self._detector.ratio:
            self._losses.put(loop.state.step, result.loss_sum / result.n_targets)
