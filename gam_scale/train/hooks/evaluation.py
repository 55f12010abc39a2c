"""Validation during training: its loss in the line of that step, and the best checkpoint."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gam_scale.data.packing import Batch
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import valid_batches
from gam_scale.errors import Stopped
from gam_scale.evaluate.loss import LossResult, late_targets, mean_loss, pad_rows
from gam_scale.parallel.context import part
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.signals import StopRequest


class Evaluation(Hook):
    """Evaluates every ``eval.every_steps`` and after the last step.

    An evaluation gives way to a signal; the run then begins with it when it resumes.

    Args:
        valid: the validation splits.
        token_bytes: UTF-8 bytes of each id.
        stop: looked at between two batches.
    """

    def __init__(
        self, valid: Sequence[TokenSplit], token_bytes: np.ndarray, stop: StopRequest
    ) -> None:
        self._valid, self._token_bytes, self._stop = valid, token_bytes, stop
        self._result: LossResult | None = None
        self._late: LossResult | None = None

    def between(self, loop: Loop) -> None:
        """Evaluate, if it is time to."""
        step, every = loop.state.step, loop.config.eval.every_steps
        self._result = self._late = None
        asked = loop.done or loop.state.to_evaluate or (every and step % every == 0)
        if asked and self._valid:
            try:
                with loop.clock.paused():
                    self._result = self._evaluate(loop)
                    if loop.done and loop.config.eval.late_from:
                        self._late = self._evaluate(loop, loop.config.eval.late_from)
            except Stopped:
                loop.state = replace(loop.state, to_evaluate=True)
                loop.finish("stopped")
                return
        loop.state = replace(loop.state, to_evaluate=False)
        if self._result is not None:
            loop.ask("line")
            self._compare(loop, self._result.loss)

    def line(self, loop: Loop, figures: dict[str, Any]) -> None:
        """Add the validation loss, if this step has one."""
        if self._result is not None:
            figures |= {
                "val_loss": self._result.loss,
                "val_perplexity": self._result.perplexity,
                "val_bits_per_byte": self._result.bits_per_byte,
            }
        if self._late is not None and self._late.tokens:
            figures["val_late_loss"] = self._late.loss

    def _evaluate(self, loop: Loop, late_from: int = 0) -> LossResult:
        """Over all ranks, of targets with ``late_from`` tokens of context or more.

        Raises:
            Stopped: on all ranks alike, between two batches: a signal asks to stop.
        """
        data, ev, world = loop.config.data, loop.config.eval, loop.world
        batches = valid_batches(
            self._valid,
            data.seq_len,
            data.documents,
            ev.batch_size,
            world.reader,
            world.axes.readers,
            ev.max_tokens,
        )
        batches = (late_targets(batch, late_from) for batch in self._watched(loop, batches))
        full = (pad_rows(batch, ev.batch_size) for batch in batches)
        parts = (part(batch, world) for batch in full)
        return mean_loss(loop.strategy.evaluate, parts, self._token_bytes, world)

    def _watched(self, loop: Loop, batches: Iterator[Batch]) -> Iterator[Batch]:
        """``batches``, of which all ranks have as many, while nobody is asked to stop."""
        for batch in batches:
            loop.doing("evaluating")
            self._stop.check(loop.world)
            yield batch

    def _compare(self, loop: Loop, loss: float) -> None:
        best = loop.state.best_val_loss
        lower = math.isfinite(loss) and (best is None or loss < best)
        if loop.config.checkpoint.keep_best and lower:
            loop.state = replace(loop.state, best_val_loss=loss)
            loop.ask("best")
