"""Loss spikes: when a step's loss is out of line with those before it."""

import math
import statistics
from collections import deque

WINDOW = 32


class SpikeDetector:
    """Compares each loss with the median of the last :data:`WINDOW`, once there are as many."""

    def __init__(self, ratio: float) -> None:
        """``ratio``: see ``train.spike_ratio``."""
        self.ratio = ratio
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether ``loss`` is one; if not, it counts among the last ones from now on."""
        full = len(self._losses) == WINDOW
        if self.ratio > 0 and full and loss > self.ratio * statistics.median(self._losses):
            return True
        if math.isfinite(loss):
            self._losses.append(loss)
        return False
