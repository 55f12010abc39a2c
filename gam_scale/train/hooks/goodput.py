"""The time at which a start has trained its first step, from which goodput is computed."""

from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import note_first_step
from gam_scale.train.loop import Hook, Loop


class Goodput(Hook):
    """Notes in the run directory when the first step is done."""

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def between(self, loop: Loop) -> None:
        """Note the time after the first step."""
        if loop.is_first and loop.world.is_main:
            note_first_step(self._run)
