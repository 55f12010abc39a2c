"""Going back to a checkpoint after a loss spike, and leaving out the data that was read since."""

import logging
from dataclasses import replace
from functools import partial

from gam_scale.checkpoint.state import TrainState
from gam_scale.errors import Diverged
from gam_scale.parallel.agreed import agreed
from gam_scale.run.directory import RunDir
from gam_scale.run.divergence import note_divergence
from gam_scale.train.hooks.spikes import WINDOW
from gam_scale.train.session import Session
from gam_scale.train.start import start_or_resume

logger = logging.getLogger("gam_scale")

MOST_ROLLBACKS = 3
"""A run that spikes once more, without having come further, ends."""


class Rollbacks:
    """The rollbacks of one start of a run.

    The first goes to the newest checkpoint. If the loss then spikes again before the run has come
    further, that checkpoint may hold the cause, so each further one goes one checkpoint back.
    """

    def __init__(self) -> None:
        self._furthest, self._in_a_row = 0, 0

    def go_back(self, session: Session, spiked: TrainState) -> TrainState:
        """Load a checkpoint; return its state, which leaves out all batches trained on since.

        Args:
            spiked: the state after the step whose loss is the spike, or a step later.

        Raises:
            Diverged: the loss spikes whatever is left out.
        """
        run, world = session.run, session.strategy.world
        again = spiked.step <= self._furthest + WINDOW
        self._in_a_row = self._in_a_row + 1 if again else 1
        self._furthest = max(self._furthest, spiked.step)
        if self._in_a_row > MOST_ROLLBACKS:
            error = Diverged(
                f"the loss spikes near step {spiked.step:,} whatever text is left out: "
                f"{MOST_ROLLBACKS} rollbacks did not help; expected a lower train.lr, a longer "
                "train.warmup_steps or another train.spike_ratio (0: never go back)"
            )
            if world.is_main:
                note_divergence(run, spiked.step, str(error))
            raise error
        agreed(world, partial(_set_aside_newest, run, self._in_a_row - 1))
        state = start_or_resume(run, session.config, session.strategy, session.data)
        batches = spiked.step - state.step
        logger.warning("back to step %d, leaving out %d batches", state.step, batches)
        return replace(state, left_out=spiked.left_out + batches)


def _set_aside_newest(run: RunDir, n: int) -> None:
    """Set the newest ``n`` checkpoints aside, but not the last one that there is."""
    run.check_lock()
    for step in run.checkpoints.steps()[1:][-n:] if n else ():
        run.checkpoints.set_aside(step, "spiked")
