"""The note that a run has diverged, beside the error with which it ends."""

from gam_scale.errors import Diverged
from gam_scale.run.directory import RunDir
from gam_scale.run.divergence import note_divergence
from gam_scale.train.loop import Hook, Loop


class NotedDivergence(Hook):
    """Rank 0 notes in the run directory that the run ends because it diverged.

    The exit status and the message of such a run are those of any mistake; whoever trains several
    runs asks for this note (:mod:`gam_scale.run.divergence`).
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def end(self, loop: Loop, error: BaseException | None) -> None:
        """Write the note."""
        if isinstance(error, Diverged) and loop.world.is_main:
            note_divergence(self._run, loop.state.step, str(error))
