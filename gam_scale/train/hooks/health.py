"""Every rank's pace and memory, added to each line."""

from pathlib import Path
from typing import Any

from gam_scale.train.health import Health
from gam_scale.train.loop import Hook, Loop


class RankPace(Hook):
    """Adds the figures of :meth:`Health.line` to lines; writes all ranks' figures to ``file``."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def start(self, loop: Loop) -> None:
        """Exchange the names of the ranks' hosts."""
        self._health = Health(loop.world, self._file)

    def line(self, loop: Loop, figures: dict[str, Any]) -> None:
        """Measure all ranks and add the figures."""
        figures |= self._health.line(figures["step"], figures["data_wait"])
