"""The figures of a logged line, and the clock behind its tokens per second."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gam_scale.errors import UserError
from gam_scale.evaluate.loss import perplexity
from gam_scale.hardware.memory import allocator_figures, peak_memory_bytes
from gam_scale.hardware.processor import synchronize
from gam_scale.parallel.world import World
from gam_scale.strict import shown
from gam_scale.train.tally import Counts, Tally

KEPT = ("tokens", "skipped_steps", "loss_sum", "line_tokens", "line_steps", "norm_sum")
"""Counts that a checkpoint must hold for the run's next line; older ones lack step_seconds."""


class Throughput:
    """A clock that counts training only: evaluation and checkpoints run inside ``paused()``.

    The clock waits for the device at both ends of a pause, so that neither training nor the pause
    is charged for the other's work.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._now = torch.device(device), now
        self._start = self._lap_start = now()
        self._left_out = self._waited = 0.0

    @property
    def seconds(self) -> float:
        """Wall time since the clock was made, pauses included."""
        return self._now() - self._start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of what happens inside out of the lap."""
        self._synchronize()
        before = self._now()
        try:
            yield
        finally:
            self._synchronize()
            self._left_out += self._now() - before

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count what happens inside as training time spent waiting for data."""
        before = self._now()
        try:
            yield
        finally:
            self._waited += self._now() - before

    def lap(self) -> tuple[float, float]:
        """End the lap; return its seconds of training, and how many of them waited for data."""
        now, seconds, waited = self._read()
        self._lap_start, self._left_out, self._waited = now, 0.0, 0.0
        return seconds, waited

    def so_far(self) -> tuple[float, float]:
        """Return what :meth:`lap` would, without ending the lap."""
        return self._read()[1:]

    def _read(self) -> tuple[float, float, float]:
        self._synchronize()
        now = self._now()
        return now, now - self._lap_start - self._left_out, self._waited

    def _synchronize(self) -> None:
        synchronize(self._device)


class StepMetrics:
    """Sums over the optimizer steps since the last line, from which it makes the next line.

    A skipped step (its update was not applied) counts in speed and in ``skipped_steps`` only.

    Args:
        flops_per_token: FLOPs per token, forward and backward, of a step by its number from 1.
        peak_flops: of all ranks' devices together, in FLOP/s.
        bytes_per_token: UTF-8 bytes of text that one target stands for, on average.
        tokens_per_step: tokens of a step by its number, where not all of them are targets; None: a
            step has as many tokens as targets.
    """

    def __init__(
        self,
        world: World,
        clock: Throughput,
        *,
        flops_per_token: Callable[[int], float],
        peak_flops: float,
        bytes_per_token: float,
        tokens_per_step: Callable[[int], int] | None = None,
    ) -> None:
        self.clock, self._world = clock, world
        self._flops_per_token, self._peak_flops = flops_per_token, peak_flops
        self._bytes_per_token, self._tokens_per_step = bytes_per_token, tokens_per_step
        self._tokens = 0
        self._step_seconds = 0.0
        self._start_line(Counts())

    def _start_line(self, counts: Counts) -> None:
        self._tally = Tally(self._world.device, counts)
        self._processed_tokens, self._processed_flops = 0, 0.0

    def add(self, step: int, loss_sum: Tensor, n_targets: int, grad_norm: Tensor) -> None:
        """Add one optimizer step; see :meth:`Tally.add`."""
        processed = self._tokens_per_step(step) if self._tokens_per_step else n_targets
        self._processed_tokens += processed
        self._processed_flops += processed * self._flops_per_token(step)
        self._tally.add(step, loss_sum, n_targets, grad_norm)

    def counts(self) -> Counts:
        """Return the sums since the last line, and all skipped steps; waits for the device."""
        return self._tally.read()

    def leave_out_start(self) -> None:
        """Leave the line's time so far, a start's first step, out of ``step_seconds``."""
        seconds, waited = self.clock.so_far()
        self._step_seconds -= seconds - waited

    def line(self, step: int, lr: float) -> dict[str, Any]:
        """Return the figures since the last line, as plain numbers; every rank must call this.

        Keys: step; tokens (targets trained on so far); loss (nats per target), perplexity,
        bits_per_byte; lr; grad_norm (mean, before clipping); tokens_per_s over all ranks; mfu;
        memory_bytes (this rank's peak); on a GPU those of :func:`allocator_figures`; data_wait
        (share of training time); seconds (of the clock, pauses included); time (seconds since
        1970); step_seconds (of all steps that count, over all starts of the run, without waits for
        data and each start's first step); skipped_steps (so far). Hooks add their own figures. A
        mean over no steps is NaN; a speed over no steps is None.
        """
        counts = self.counts()
        (loss_sum,) = self._world.sum(counts.loss_sum)
        seconds, waited = self.clock.lap()
        loss = _ratio(loss_sum, counts.targets)
        trained = self._processed_tokens > 0  # a resume may begin with an evaluation
        tokens_per_s = _ratio(self._processed_tokens, seconds)
        self._tokens += counts.targets
        self._step_seconds += seconds - waited
        figures = {
            "step": step,
            "tokens": self._tokens,
            "loss": loss,
            "perplexity": perplexity(loss),
            "bits_per_byte": loss / math.log(2) / self._bytes_per_token,
            "lr": lr,
            "grad_norm": _ratio(counts.norm_sum, counts.steps),
            "tokens_per_s": tokens_per_s if trained else None,
            "mfu": _ratio(self._processed_flops, seconds) / self._peak_flops if trained else None,
            "memory_bytes": peak_memory_bytes(self._world.device),
            "data_wait": _ratio(waited, seconds),
            "seconds": self.clock.seconds,
            "time": time.time(),
            "step_seconds": self._step_seconds,
            "skipped_steps": counts.skipped,
        }
        figures |= allocator_figures(self._world.device)
        self._start_line(replace(counts, loss_sum=0.0, targets=0, steps=0, norm_sum=0.0))
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to log as if it had never stopped.

        Every rank must call this. The state is JSON-ready, and the same for any number of ranks.
        """
        counts = self.counts()
        (loss_sum,) = self._world.sum(counts.loss_sum)
        seconds, waited = self.clock.so_far()
        return {
            "step_seconds": self._step_seconds + seconds - waited,
            "tokens": self._tokens,
            "skipped_steps": counts.skipped,
            "loss_sum": loss_sum,
            "line_tokens": counts.targets,
            "line_steps": counts.steps,
            "norm_sum": counts.norm_sum,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the result of :meth:`state_dict`; speed is counted afresh.

        Raises:
            UserError: a count in ``state`` is missing or not a number.
        """
        for key in (*KEPT, *(state.keys() & {"step_seconds"})):
            if type(state.get(key)) not in (int, float):
                raise UserError(
                    f"the checkpoint's state.json: metrics.{key} is {shown(state.get(key))}; "
                    "expected a number"
                )
        self._tokens = state["tokens"]
        self._step_seconds = state.get("step_seconds", 0.0)  # older checkpoints lack it
        self._start_line(
            Counts(
                # The sum is over all ranks, so one rank alone carries it on.
                loss_sum=state["loss_sum"] if self._world.is_main else 0.0,
                targets=state["line_tokens"],
                steps=state["line_steps"],
                norm_sum=state["norm_sum"],
                skipped=state["skipped_steps"],
            )
        )


def _ratio(total: float, count: float) -> float:
    return total / count if count > 0 else math.nan
