"""A decay on demand: a file in the run directory asks a running job to begin its decay now."""

from gam_scale.run.anneal import can_decay, requested
from gam_scale.run.directory import RunDir
from gam_scale.train.loop import Hook, Loop


class Annealing(Hook):
    """Ends the loop once the file is there; the run then goes on with the decay.

    The main rank looks for the file before each step that follows a logged line. A file that comes
    during the warm-up waits until the rate is above the one that the decay ends with.

    Args:
        run: the directory in which the file may appear.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def ballot(self, loop: Loop) -> float:
        """Return 1 if this is the main rank and it sees a request that can begin now, else 0."""
        if loop.state.step % loop.config.log.every_steps or not loop.world.is_main:
            return 0.0
        steps, step, train = requested(self._run), loop.state.step, loop.config.train
        if steps and train.anneal.steps:
            self._run.anneal_now.unlink(missing_ok=True)  # the decay has begun already
            return 0.0
        return float(steps > 0 and step > 0 and can_decay(train, step))

    def agreed(self, loop: Loop, total: float) -> None:
        """End the loop if the decay is to begin."""
        if total:
            loop.finish("annealing")
