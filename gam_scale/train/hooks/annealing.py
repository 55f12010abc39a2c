"""A file in the run directory asks a running job to begin its decay now."""

from gam_scale.run.anneal import can_decay, requested
from gam_scale.run.directory import RunDir
from gam_scale.train.loop import Hook, Loop


class Annealing(Hook):
    """Ends the loop once the file is there, for the run to go on with the decay.

    It is looked for before each step behind a logged line; one in the warm-up waits until the rate
    is above that with which the decay ends.

    Args:
        run: whose directory it is.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def ballot(self, loop: Loop) -> float:
        """Whether the main rank sees it."""
        if loop.state.step % loop.config.log.every_steps or not loop.world.is_main:
            return 0.0
        steps, step, train = requested(self._run), loop.state.step, loop.config.train
        if steps and train.anneal.steps:
            self._run.anneal_now.unlink(missing_ok=True)  # it goes on already
            return 0.0
        return float(steps > 0 and step > 0 and can_decay(train, step))

    def agreed(self, loop: Loop, total: float) -> None:
        """Leave the loop, if so."""
        if total:
            loop.finish("annealing")
