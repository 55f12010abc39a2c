"""Logged lines, as in metrics.jsonl: sums and means over the steps since the last line."""

from collections.abc import Callable
from dataclasses import replace

from gam_scale.checkpoint.state import TrainState
from gam_scale.schedule import learning_rate
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.metrics import StepMetrics, Throughput
from gam_scale.train.sinks import MetricLog
from gam_scale.train.step import StepResult
from gam_scale.train.tally import Counts


class Lines(Hook):
    """Logs a line at the first step, every ``log.every_steps``, at the last step and when asked to.

    Args:
        make: makes the metrics that use a given clock.
        log: receives the lines.
        check_lock: called before a line is written; ends a process that has lost the lock.
    """

    def __init__(
        self,
        make: Callable[[Throughput], StepMetrics],
        log: MetricLog,
        check_lock: Callable[[], None],
    ) -> None:
        self._make, self._log, self._check_lock = make, log, check_lock

    def start(self, loop: Loop) -> None:
        """Go on with the line under way whose sums the checkpoint holds."""
        self._metrics = self._make(loop.clock)
        if loop.state.metrics:
            self._metrics.load_state_dict(loop.state.metrics)

    def counts(self) -> Counts:
        """See :meth:`StepMetrics.counts`."""
        return self._metrics.counts()

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Add the step to the sums."""
        self._metrics.add(loop.state.step, *result)

    def leave_out_start(self) -> None:
        """See :meth:`StepMetrics.leave_out_start`."""
        self._metrics.leave_out_start()

    def between(self, loop: Loop) -> None:
        """Log a line if one is due."""
        step, every = loop.state.step, loop.config.log.every_steps
        if loop.done or "line" in loop.asked or step == 1 or step % every == 0:
            loop.read_device()
            self._check_lock()
            train = loop.config.train
            figures = self._metrics.line(step, learning_rate(train, step - 1, train.steps))
            for hook in loop.hooks:
                hook.line(loop, figures)
            self._log.log(figures)

    def saves(self, loop: Loop, state: TrainState) -> TrainState:
        """Return the state with the sums of the line under way; all lines before are on disk."""
        self._log.sync()
        return replace(state, metrics=self._metrics.state_dict())
