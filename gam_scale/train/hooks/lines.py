"""The lines of metrics.jsonl and its like: what steps add up to, logged from time to time."""

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
    """Logs a line at the first step, every ``log.every_steps``, at the last and where asked to.

    Args:
        make: the metrics that go by a clock.
        log: where lines go.
        check_lock: called before a line is written; ends a process that may not write any more.
    """

    def __init__(
        self,
        make: Callable[[Throughput], StepMetrics],
        log: MetricLog,
        check_lock: Callable[[], None],
    ) -> None:
        self._make, self._log, self._check_lock = make, log, check_lock

    def start(self, loop: Loop) -> None:
        """Go on from what a checkpoint holds of the line under way."""
        self._metrics = self._make(loop.clock)
        if loop.state.metrics:
            self._metrics.load_state_dict(loop.state.metrics)

    def counts(self) -> Counts:
        """See :meth:`StepMetrics.counts`."""
        return self._metrics.counts()

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Add the step up."""
        self._metrics.add(loop.state.step, *result)

    def leave_out_start(self) -> None:
        """See :meth:`StepMetrics.leave_out_start`."""
        self._metrics.leave_out_start()

    def between(self, loop: Loop) -> None:
        """Log, if a line is due."""
        step, every = loop.state.step, loop.config.log.every_steps
        if loop.done or "line" in loop.asked or step == 1 or step % every == 0:
            loop.look()
            self._check_lock()
            train = loop.config.train
            figures = self._metrics.line(step, learning_rate(train, step - 1, train.steps))
            for hook in loop.hooks:
                hook.line(loop, figures)
            self._log.log(figures)

    def saves(self, loop: Loop, state: TrainState) -> TrainState:
        """With the line under way."""
        return replace(state, metrics=self._metrics.state_dict())
