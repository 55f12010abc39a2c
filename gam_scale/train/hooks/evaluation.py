"""Validation during training: it adds losses to a step's line and finds the best checkpoint."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gam_scale.data.packing import Batch
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import valid_batches
from gam_scale.errors import Stopped
from gam_scale.evaluate.by_set import RowSets, mean_losses
from gam_scale.evaluate.loss import LossResult, late_targets, mean_loss, pad_rows
from gam_scale.parallel.context import part
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.reading import RunData
from gam_scale.train.signals import StopRequest


class Evaluation(Hook):
    """Evaluates every ``eval.every_steps`` steps and after the last step.

    It measures the mean loss over the validation splits of ``data.sets``, the loss of each of
    several splits in the same pass, and the loss of every set of ``eval.sets``. An evaluation gives
    way to a signal; a resumed run begins with that evaluation.

    Args:
        data: holds the validation splits.
        stop: checked between two batches.
    """

    def __init__(self, data: RunData, stop: StopRequest) -> None:
        self._data, self._stop = data, stop
        self._token_bytes: np.ndarray = data.tokenizer.token_bytes()
        self._result: LossResult | None = None
        self._late: LossResult | None = None
        self._named: dict[str, LossResult] = {}

    def between(self, loop: Loop) -> None:
        """Evaluate if an evaluation is due."""
        self._result, self._late, self._named = None, None, {}
        if due(loop, loop.config.eval.every_steps):
            try:
                with loop.clock.paused():
                    self._evaluate(loop)
            except Stopped:
                loop.state = replace(loop.state, to_evaluate=True)
                loop.finish("stopped")
                return
        loop.state = replace(loop.state, to_evaluate=False)
        if self._result is not None or self._named:
            loop.ask("line")
            self._compare(loop)

    def line(self, loop: Loop, figures: dict[str, Any]) -> None:
        """Add the validation losses if this step was evaluated."""
        if self._result is not None:
            figures |= {
                "val_loss": self._result.loss,
                "val_perplexity": self._result.perplexity,
                "val_bits_per_byte": self._result.bits_per_byte,
            }
        for name, result in self._named.items():
            figures[f"val_loss/{name}"] = result.loss
            figures[f"val_bits_per_byte/{name}"] = result.bits_per_byte
        if self._late is not None and self._late.tokens:
            figures["val_late_loss"] = self._late.loss

    def _evaluate(self, loop: Loop) -> None:
        """Measure the losses on all validation data.

        Raises:
            Stopped: a signal asks to stop; raised on all ranks alike, between two batches.
        """
        valid, evaluate = self._data.valid, loop.strategy.evaluate
        if len(valid) > 1:
            ev, readers = loop.config.eval, loop.world.axes.readers
            lengths = [split.tokens for split in valid]
            size = loop.config.data.seq_len, ev.max_tokens, ev.batch_size, readers
            read = self._batches(loop, valid), self._token_bytes, loop.world
            self._result, parts = mean_losses(evaluate, *read, RowSets(lengths, *size), len(valid))
            self._named = dict(zip(self._data.valid_names, parts, strict=True))
        elif valid:
            self._result = self._mean(loop, valid)
        for name, splits in self._data.named.items():
            self._named[name] = self._mean(loop, splits)
        if valid and loop.done and loop.config.eval.late_from:
            self._late = self._mean(loop, valid, loop.config.eval.late_from)

    def _mean(self, loop: Loop, splits: Sequence[TokenSplit], late_from: int = 0) -> LossResult:
        """Return the mean over all ranks, of targets with at least ``late_from`` tokens before."""
        batches = self._batches(loop, splits, late_from)
        return mean_loss(loop.strategy.evaluate, batches, self._token_bytes, loop.world)

    def _batches(
        self, loop: Loop, splits: Sequence[TokenSplit], late_from: int = 0
    ) -> Iterator[Batch]:
        """Yield this rank's batches, of one shape and as many on all ranks; check for a stop."""
        data, ev, world = loop.config.data, loop.config.eval, loop.world
        share = world.reader, world.axes.readers
        size = data.seq_len, data.documents, ev.batch_size
        for batch in valid_batches(splits, *size, *share, ev.max_tokens):
            loop.doing("evaluating")
            self._stop.check(world)
            yield part(pad_rows(late_targets(batch, late_from), ev.batch_size), world)

    def _compare(self, loop: Loop) -> None:
        """Ask for a checkpoint if the validation loss is the lowest so far."""
        by, state = loop.config.checkpoint.best, loop.state
        result = self._named.get(by) if by else self._result
        best = state.best_val_loss if state.best_of == by else None
        loss = math.nan if result is None else result.loss
        lower = math.isfinite(loss) and (best is None or loss < best)
        if loop.config.checkpoint.keep_best and lower:
            loop.state = replace(state, best_val_loss=loss, best_of=by)
            loop.ask("best")


def due(loop: Loop, every: int) -> bool:
    """Return whether a task that runs every ``every`` steps and after the last step is due now.

    The answer follows from the step alone, so a start that begins at such a step does it again.
    """
    return loop.done or (every > 0 and loop.state.step % every == 0)
