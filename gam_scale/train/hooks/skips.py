"""Skipped steps, whose update was not applied: they are logged; too many in a row end the run."""

import logging
from dataclasses import replace

from gam_scale.errors import Diverged
from gam_scale.train.hooks.lines import Lines
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult
from gam_scale.train.tally import Counts

logger = logging.getLogger("gam_scale")


class Skips:
    """Checks the counts of skipped steps from time to time.

    Args:
        most_in_a_row: see ``train.max_skipped_steps``.
        step: steps done so far.
        skipped: steps skipped so far in the run.
    """

    def __init__(self, most_in_a_row: int, step: int, skipped: int) -> None:
        self._most, self._step, self._skipped = most_in_a_row, step, skipped

    def check(self, step: int, counts: Counts) -> int:
        """Return how many steps were applied since the last check, up to ``step``.

        Raises:
            Diverged: too many steps in a row were skipped.
        """
        first, skipped = self._step + 1, counts.skipped - self._skipped
        done = step - self._step
        self._step, self._skipped = step, counts.skipped
        if skipped == done == 1:
            logger.warning("step %d skipped: its gradient is not finite", step)
        elif skipped:
            said = "%d of the steps %d to %d skipped: their gradients are not finite"
            logger.warning(said, skipped, first, step)
        if counts.longest_streak >= self._most:
            raise Diverged(
                f"{counts.longest_streak} steps in a row, the last one "
                f"{counts.longest_streak_end}, had no finite gradient; expected fewer than "
                "train.max_skipped_steps: lower train.lr, or resume from an earlier checkpoint"
            )
        return done - skipped


class CountedSkips(Hook):
    """Adds the steps that were applied to ``loop.state``, whenever the loop reads the device.

    Args:
        lines: holds the counts of steps.

    Attributes:
        at_once: whether to read after each step; None: only on a CPU, whose work is done by then,
            so that reading is no wait.
    """

    def __init__(self, lines: Lines, *, at_once: bool | None = None) -> None:
        self._lines, self.at_once = lines, at_once

    def start(self, loop: Loop) -> None:
        """Go on from the checkpoint's count."""
        if self.at_once is None:
            self.at_once = loop.world.device.type == "cpu"
        skipped = self._lines.counts().skipped
        self._skips = Skips(loop.config.train.max_skipped_steps, loop.state.step, skipped)

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Have all hooks read the device if that is no wait."""
        if self.at_once:
            loop.read_device()

    def read_device(self, loop: Loop) -> None:
        """Count the steps that were applied since the last read."""
        applied = self._skips.check(loop.state.step, self._lines.counts())
        steps = loop.state.optimizer_steps + applied
        loop.state = replace(loop.state, optimizer_steps=steps)
