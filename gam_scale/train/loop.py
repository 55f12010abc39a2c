"""The training loop: one optimizer step after another, with evaluation, metrics, checkpoints."""

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from gam_scale import __version__, pulse
from gam_scale.checkpoint.store import TrainState
from gam_scale.config import RunConfig
from gam_scale.data.order import derive_seed
from gam_scale.data.packing import Batch
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import Prefetcher, TrainStream, micro_batches, valid_batches
from gam_scale.data.transfer import Transfer
from gam_scale.errors import Stopped
from gam_scale.evaluate.loss import LossResult, mean_loss, pad_rows
from gam_scale.model.rotary import rotation_of
from gam_scale.parallel.context import axes
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.watchdog import Watchdog
from gam_scale.schedule import learning_rate
from gam_scale.train.first_step import FirstStep
from gam_scale.train.garbage import Garbage
from gam_scale.train.last_loss import LastLoss
from gam_scale.train.metrics import StepMetrics
from gam_scale.train.out_of_memory import snapshot_when_out_of_memory
from gam_scale.train.profile import StepProfile
from gam_scale.train.saver import Saver
from gam_scale.train.signals import StopRequest
from gam_scale.train.sinks import MetricLog
from gam_scale.train.skips import Skips
from gam_scale.train.spikes import SpikeDetector

logger = logging.getLogger("gam_scale")

Outcome = Literal["finished", "stopped", "spiked"]


class Loop:
    """Trains from ``state`` to ``config.train.steps``; everything it touches is handed in."""

    def __init__(
        self,
        config: RunConfig,
        saver: Saver,
        strategy: Strategy,
        stream: TrainStream,
        valid: list[TokenSplit],
        token_bytes: np.ndarray,
        metrics: StepMetrics,
        log: MetricLog,
        stop: StopRequest,
        watchdog: Watchdog,
        state: TrainState,
        first_step: FirstStep,
    ) -> None:
        self.config, self.saver, self.strategy = config, saver, strategy
        self.stream, self.valid, self.token_bytes = stream, valid, token_bytes
        self.metrics, self.log, self.state = metrics, log, state
        self.stop, self.watchdog = stop, watchdog
        self.first_step = first_step
        self.first_done = min(state.step + 1, config.train.steps)  # that step may be to evaluate
        self.spikes = SpikeDetector(config.train.spike_ratio)
        self.world = strategy.world
        self.last_loss = LastLoss(self.world.device)
        self.axes = axes(strategy.world, config.parallel.context)
        self.transfer = Transfer(strategy.world.device)
        if state.metrics:
            metrics.load_state_dict(state.metrics)
        skipped = metrics.counts().skipped
        self.skips = Skips(config.train.max_skipped_steps, state.step, skipped)

    def run(self) -> Outcome:
        """Train until done, until a signal asks to stop (then it is saved), or until a spike."""
        if self.state.to_evaluate and self._after_step() == "stopped":
            return "stopped"  # all that there is to save was read a moment ago
        still = self.state.step, self.config.train.steps
        folder, profiled = (
            Path(self.config.log.run_dir) / "logs" / "profile",
            self.config.train.profile,
        )
        with (
            self.first_step,
            snapshot_when_out_of_memory(folder, self.world, trace=bool(profiled)),
            StepProfile(profiled, folder, self.world, self.metrics.clock.paused) as profile,
            Garbage() as garbage,
            Prefetcher(self._load, *still, lambda: self.stop.requested) as steps,
        ):
            while self.state.step < self.config.train.steps:
                with profile.step(self.state.step + 1):
                    outcome = self._turn(steps)
                garbage.at(self.state.step)
                if outcome == "stopped":
                    self._save(is_best=False)
                if outcome is not None:
                    self.saver.finish()
                    return outcome
        self.saver.finish()
        return "finished"

    def _turn(self, steps: Prefetcher) -> Outcome | None:
        self.watchdog.at(self.state.step, "reading data")
        with self.metrics.clock.waiting():
            batches = next(steps)
        self.watchdog.at(self.state.step, "training")
        return self._step(batches) or self._after_step()

    def _load(self, step: int) -> list[Batch]:
        axes, number = self.axes, step + self.state.left_out
        train = self.config.train
        first = self.state.first_sample
        batches = micro_batches(self.stream, number, train, axes.data_rank, axes.data_size, first)
        rotation = rotation_of(self.config.model)
        parts = (axes.part(batch).turned(rotation) for batch in batches)
        return [self.transfer.prepare(part) for part in parts]

    def _step(self, batches: list[Batch]) -> Outcome | None:
        """One optimizer step, or what all ranks agree to do instead of it."""
        train, state = self.config.train, self.state
        local_targets = sum(batch.num_targets for batch in batches)
        recent = self.last_loss.get()
        # Numbers of the hosts: the device computes the last step meanwhile.
        n_targets, stops, saved, loss = self.world.sum(
            local_targets,
            float(self.stop.requested),
            float(self.saver.ready),
            recent.value,
        )
        if saved == self.world.world_size:
            self.saver.finish()
        if stops:
            return "stopped"
        if self.spikes.is_spike(loss):
            logger.warning("step %d has a loss of %.3f, a spike", recent.step, loss)
            return "spiked"
        # Dropout masks follow from the step, so a resumed run draws the same ones.
        torch.manual_seed(derive_seed(train.seed, "dropout", state.step, self.world.rank))
        carry = self.strategy.carry
        before = state.first_sample // train.global_batch_size
        if carry is not None and self.stream.lanes.starts_at(before + state.step):
            carry.clear()
        if carry is not None:
            pairs = zip(batches, carry.parts, strict=True)
            batches = [batch._replace(carried=rows) for batch, rows in pairs]
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for i, batch in enumerate(self.transfer(batches)):
            last = i == len(batches) - 1
            pulse.beat()
            loss_sum += self.strategy.backward(batch, 1.0 / n_targets, last=last)
        lr = learning_rate(train, state.step, train.steps)
        grad_norm = self.strategy.step(lr, train.grad_clip)
        if carry is not None and not grad_norm.isfinite():  # waits for the device
            carry.clear()  # what made the gradient infinite may be in the states
        if train.spike_ratio:
            self.last_loss.put(state.step + 1, loss_sum / n_targets)
        self.metrics.add(state.step + 1, loss_sum, int(n_targets), grad_norm)
        self.state = replace(
            state, step=state.step + 1, sequences=state.sequences + train.global_batch_size
        )
        if self._is_computed:
            self._look()
        return None

    @property
    def _is_computed(self) -> bool:
        """Whether what the device was given to compute is there when the host goes on."""
        return self.world.device.type == "cpu"

    def _look(self) -> None:
        """Take in which steps were applied, for which the device is waited for."""
        applied = self.skips.look(self.state.step, self.metrics.counts())
        steps = self.state.optimizer_steps + applied
        self.state = replace(self.state, optimizer_steps=steps)

    def _after_step(self) -> Outcome | None:
        """What is due between steps; "stopped" where an evaluation gave way to a signal."""
        config, step = self.config, self.state.step
        done = step == config.train.steps
        if step == self.first_done:
            self.metrics.leave_out_start()
            self.first_step.done()
        validation = None
        asked = (
            done
            or self.state.to_evaluate
            or (config.eval.every_steps and step % config.eval.every_steps == 0)
        )
        if asked and self.valid:
            self.watchdog.at(step, "evaluating")
            try:
                with self.metrics.clock.paused():
                    validation = self.evaluate()
            except Stopped:
                self.state = replace(self.state, to_evaluate=True)
                return "stopped"
        self.state = replace(self.state, to_evaluate=False)
        if done or validation or step == 1 or step % config.log.every_steps == 0:
            self._look()
            self.saver.check_lock()
            rate = learning_rate(config.train, step - 1, config.train.steps)
            self.log.log(self.metrics.line(step, rate, validation))
        better = validation is not None and self._is_better(validation.loss)
        if better:
            self.state = replace(self.state, best_val_loss=validation.loss)
        due = step % config.checkpoint.every_steps == 0 or step in config.checkpoint.keep_steps
        if done or due or better:
            self.watchdog.at(step, "saving")
            with self.metrics.clock.paused():
                self._save(is_best=better)
        return None

    def evaluate(self) -> LossResult:
        """Loss on the validation split, over all ranks.

        Raises:
            Stopped: on all ranks alike, between two batches: a signal asks to stop.
        """
        data, ev, world = self.config.data, self.config.eval, self.world
        batches = valid_batches(
            self.valid,
            data.seq_len,
            data.documents,
            ev.batch_size,
            self.axes.data_rank,
            self.axes.data_size,
            ev.max_tokens,
        )
        full = (pad_rows(batch, ev.batch_size) for batch in self._while_nobody_stops(batches))
        parts = map(self.axes.part, full)
        return mean_loss(self.strategy.evaluate, parts, self.token_bytes, world)

    def _while_nobody_stops(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """``batches``, of which all ranks have as many."""
        for batch in batches:
            self.watchdog.at(self.state.step, "evaluating")
            self.stop.check(self.world)
            yield batch

    def _is_better(self, loss: float) -> bool:
        best = self.state.best_val_loss
        lower = math.isfinite(loss) and (best is None or loss < best)
        return self.config.checkpoint.keep_best and lower

    def _save(self, *, is_best: bool) -> None:
        self._look()
        state = replace(
            self.state,
            metrics=self.metrics.state_dict(),
            data_fingerprint=self.stream.fingerprint(),
            world_size=self.world.world_size,
            code_version=__version__,
        )
        carry = self.strategy.carry
        carried = carry.state_dict() if carry is not None else {}
        self.saver.start(self.strategy.shards(), state, is_best=is_best, carried=carried)
