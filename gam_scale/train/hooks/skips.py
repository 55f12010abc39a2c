"""Steps whose update was not applied: said in the log, and too many in a row end the run."""

import logging
from dataclasses import replace

from gam_scale.errors import UserError
from gam_scale.train.hooks.lines import Lines
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult
from gam_scale.train.tally import Counts

logger = logging.getLogger("gam_scale")


class Skips:
    """Looks at the counts from time to time.

    Args:
        most_in_a_row: see ``train.max_skipped_steps``.
        step: steps done so far.
        skipped: how many of the run's steps were, so far.
    """

    def __init__(self, most_in_a_row: int, step: int, skipped: int) -> None:
        self._most, self._step, self._skipped = most_in_a_row, step, skipped

    def look(self, step: int, counts: Counts) -> int:
        """How many steps were applied since the last look, up to ``step``.

        Raises:
            UserError: too many in a row were not.
        """
        first, skipped = self._step + 1, counts.skipped - self._skipped
        done = step - self._step
        self._step, self._skipped = step, counts.skipped
        if skipped == done == 1:
            logger.warning("step %d skipped: its gradient is not finite", step)
        elif skipped:
            said = "%d of the steps %d to %d skipped: their gradients are not finite"
            logger.warning(said, skipped, first, step)
        if counts.longest >= self._most:
            raise UserError(
                f"{counts.longest} steps in a row, the last one {counts.longest_end}, had no "
                "finite gradient; expected fewer than train.max_skipped_steps: lower train.lr, or "
                "resume from an earlier checkpoint"
            )
        return done - skipped


class CountedSkips(Hook):
    """Counts the steps that were applied, in ``loop.state``, whenever the counts are looked at.

    Args:
        lines: has the counts.

    Attributes:
        at_once: look after each step; None: where the device has computed what it was given when
            the host goes on, as a CPU has.
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
        """Look, where that is no wait."""
        if self.at_once:
            loop.look()

    def look(self, loop: Loop) -> None:
        """Take in which steps were applied."""
        applied = self._skips.look(loop.state.step, self._lines.counts())
        steps = loop.state.optimizer_steps + applied
        loop.state = replace(loop.state, optimizer_steps=steps)
