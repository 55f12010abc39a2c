"""When a start has trained its first step, for the account of the run's time."""

from gam_scale.run.directory import RunDir
from gam_scale.run.goodput import note_first_step
from gam_scale.train.loop import Hook, Loop


class Goodput(Hook):
    """Notes it in the run directory."""

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def between(self, loop: Loop) -> None:
        """After the first step."""
        if loop.is_first and loop.world.is_main:
            note_first_step(self._run)
