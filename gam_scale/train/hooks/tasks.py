"""Tasks that the model is asked while it trains; a step's line shows what it gets right."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gam_scale.errors import Stopped
from gam_scale.evaluate.downstream.task import Measure
from gam_scale.evaluate.interval import Interval
from gam_scale.evaluate.scorer import Scorer
from gam_scale.train.hooks.evaluation import due
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.signals import StopRequest


class Tasks(Hook):
    """Asks the tasks every ``eval.tasks_every`` steps and after the last step.

    This hook comes before the evaluation. Like the evaluation, it gives way to a signal; a resumed
    run then begins with both.

    Args:
        measures: the tasks, by name.
        vocab_size: of the tokenizer.
        stop: checked between two forward passes.
    """

    def __init__(self, measures: Mapping[str, Measure], vocab_size: int, stop: StopRequest) -> None:
        self._measures, self._vocab_size, self._stop = measures, vocab_size, stop
        self._figures: dict[str, float] = {}

    def between(self, loop: Loop) -> None:
        """Ask the tasks if they are due."""
        self._figures, ev = {}, loop.config.eval
        if not self._measures or not due(loop, ev.tasks_every or ev.every_steps):
            return
        scorer = Scorer(
            loop.strategy.logits,
            self._vocab_size,
            loop.world,
            seq_len=loop.config.data.seq_len,
            batch_size=ev.batch_size,
            fixed=loop.strategy.compilation.is_on,
            watch=partial(self._watch, loop),
        )
        try:
            with loop.clock.paused():
                for name, measure in self._measures.items():
                    for figure, value in measure(scorer).items():
                        mean = value.mean if isinstance(value, Interval) else value
                        self._figures[f"task/{name}/{figure}"] = mean
        except Stopped:
            self._figures = {}
            loop.state = replace(loop.state, to_evaluate=True)
            loop.finish("stopped")
            return
        loop.ask("line")

    def line(self, loop: Loop, figures: dict[str, Any]) -> None:
        """Add the figures of the tasks asked at this step."""
        figures |= self._figures

    def _watch(self, loop: Loop) -> None:
        loop.doing("asking tasks")
        self._stop.check(loop.world)
