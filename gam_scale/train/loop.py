"""The training loop: one optimizer step after another, with hooks called around each step."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch

from gam_scale.checkpoint.state import TrainState
from gam_scale.config import RunConfig
from gam_scale.data.order import derive_seed
from gam_scale.data.packing import Batch
from gam_scale.data.stream import Prefetcher
from gam_scale.parallel.strategy import Strategy
from gam_scale.schedule import learning_rate
from gam_scale.train.batches import Batches
from gam_scale.train.metrics import Throughput
from gam_scale.train.step import StepResult, count_targets, train_step

Outcome = Literal["finished", "stopped", "spiked", "annealing"]
Due = Literal["line", "save", "best"]


class Hook:
    """A task that runs beside the training itself, such as logging, evaluating or saving.

    A hook overrides the methods of the events that it needs. Every event reaches the hooks in the
    order of their list, on all ranks alike::

        start                    once, before the first batch
        between                  once, if a start repeats an evaluation that a signal cut short
        for every step:
            before_batch         the loop is about to wait for the step's batches
            ballot, agreed       a number of each hook; one sum over ranks adds up all of them
            before_step          the step is about to go to the device; batches may be replaced
            after_step           the device has the step, and may still be computing it
            between              the step is done: ``loop.state`` is the state after it
                read_device      within between, if a line is logged or a checkpoint is saved
                line             within between, if a line is due: its figures
                accepts, saves   within between, if a checkpoint is due: its state
            over                 everything that follows from the step is done
        leave                    the run ends, stops, rolls back or anneals (``loop.outcome``)
        end                      always, even after an error; in reverse order of the hooks

    ``doing`` comes whenever the loop, or a hook, begins something that may take long.

    A hook may read all of the loop and replace ``loop.state``. In :meth:`between` it may ask the
    hooks after it for a line or a checkpoint (:meth:`Loop.ask`). In :meth:`agreed`,
    :meth:`accepts` or :meth:`between` it may end the loop (:meth:`Loop.finish`): the event then
    reaches no further hook, and of the step's remaining events only ``over`` comes. All ranks must
    take such a decision alike; :meth:`ballot` lets them agree. A hook may wait for the device
    between steps only, and only at steps of its own choice, since the host must stay ahead of the
    device. It must not draw from torch's generators. What a hook keeps from step to step ends with
    the process, unless :meth:`saves` puts it into the state.
    """

    def start(self, loop: "Loop") -> None:
        """Prepare for training; called again after a rollback or annealing, with another loop."""

    def doing(self, loop: "Loop", what: str) -> None:
        """Note what begins: "reading data", "training", "evaluating", "saving", ..."""

    def before_batch(self, loop: "Loop") -> None:
        """Act before the loop waits for the batches of the step after ``loop.state.step``."""

    def ballot(self, loop: "Loop") -> float:
        """Return this rank's number for :meth:`agreed`, which its host must know already."""
        return 0.0

    def agreed(self, loop: "Loop", total: float) -> None:
        """Act on ``total``, the sum of all ranks' ballots of this hook."""

    def before_step(self, loop: "Loop", batches: list[Batch]) -> list[Batch]:
        """Return the micro-batches to train on, in CPU memory: the given ones or replacements."""
        return batches

    def after_step(self, loop: "Loop", result: StepResult) -> None:
        """Take the results of step ``loop.state.step``, for which the hook must not wait."""

    def between(self, loop: "Loop") -> None:
        """Act between two steps."""

    def read_device(self, loop: "Loop") -> None:
        """Read results from the device, for which the host waits at this point anyway."""

    def line(self, loop: "Loop", figures: dict[str, Any]) -> None:
        """Add plain numbers by name to the figures of a line."""

    def accepts(self, loop: "Loop") -> bool:
        """Return, on all ranks alike, whether a checkpoint of this state may be saved.

        The device has computed the state by then. A hook that refuses may end the loop.
        """
        return True

    def saves(self, loop: "Loop", state: TrainState) -> TrainState:
        """Return the state for a checkpoint, with this hook's part added."""
        return state

    def over(self, loop: "Loop") -> None:
        """Act when a step is over, or when the loop ends instead of taking it."""

    def leave(self, loop: "Loop") -> None:
        """Act when training ends in good order, for the reason ``loop.outcome``."""

    def end(self, loop: "Loop", error: BaseException | None) -> None:
        """Release what :meth:`start` took; ``error`` is the error that ends the loop, if any."""


class Loop:
    """Trains from ``state`` to ``config.train.steps``; hooks do everything else.

    Attributes:
        state: the train state after the last step.
        clock: measures training time; it is paused for evaluations, checkpoints and the like.
        outcome: why the loop ends; None: it goes on.
        asked: what hooks asked for between two steps: a line, a checkpoint, or a checkpoint that is
            the best so far.
    """

    def __init__(
        self,
        config: RunConfig,
        strategy: Strategy,
        batches: Batches,
        state: TrainState,
        hooks: Sequence[Hook],
    ) -> None:
        self.config, self.strategy, self.batches, self.state = config, strategy, batches, state
        self.hooks, self.world = hooks, strategy.world
        self.clock = Throughput(self.world.device)
        self.outcome: Outcome | None = None
        self.asked: set[Due] = set()
        # If only the last step's evaluation is still to come, that step counts as the first.
        self._first = min(state.step + 1, config.train.steps)

    @property
    def done(self) -> bool:
        """Whether all steps are trained."""
        return self.state.step == self.config.train.steps

    @property
    def is_first(self) -> bool:
        """Whether ``state`` is the state after the first step of this loop."""
        return self.state.step == self._first

    def ask(self, what: Due) -> None:
        """Ask for a line to be logged, or a checkpoint to be saved, before the next step."""
        self.asked.add(what)

    def finish(self, outcome: Outcome) -> None:
        """End the loop with ``outcome``."""
        self.outcome = outcome

    def doing(self, what: str) -> None:
        """Tell all hooks that ``what`` begins."""
        for hook in self.hooks:
            hook.doing(self, what)

    def read_device(self) -> None:
        """Have all hooks read results from the device, which makes the host wait for it."""
        for hook in self.hooks:
            hook.read_device(self)

    def run(self) -> Outcome:
        """Train until all steps are done or a hook ends the loop; return the outcome."""
        with ExitStack() as stack:
            for hook in self.hooks:
                hook.start(self)
                stack.push(partial(_end, hook, self))
            if self.state.to_evaluate:
                self._between()
            still = self.state.step, self.config.train.steps
            with Prefetcher(self.batches, *still, self.batches.gives_up) as steps:
                while self.outcome is None and not self.done:
                    self._turn(steps)
                self.outcome = self.outcome or "finished"
                for hook in self.hooks:  # before the prefetcher closes: it may wait for data
                    hook.leave(self)
        return self.outcome

    def _turn(self, steps: Prefetcher) -> None:
        for hook in self.hooks:
            hook.before_batch(self)
        self.doing("reading data")
        with self.clock.waiting():
            batches = next(steps)
        self.doing("training")
        n_targets = self._agree(batches)
        if self.outcome is None:
            self._step(batches, n_targets)
            self._between()
        for hook in self.hooks:
            hook.over(self)

    def _agree(self, batches: list[Batch]) -> int:
        """Return the number of targets over all ranks, summed together with all ballots.

        The sum is over numbers that the hosts know, so the device computes the last step meanwhile.
        """
        ballots = [hook.ballot(self) for hook in self.hooks]
        n_targets, *totals = self.world.sum(count_targets(batches), *ballots)
        for hook, total in zip(self.hooks, totals, strict=True):
            hook.agreed(self, total)
            if self.outcome:
                break
        return int(n_targets)

    def _step(self, batches: list[Batch], n_targets: int) -> None:
        train, state = self.config.train, self.state
        # The seed depends on the step, so a resumed run draws the same dropout masks.
        torch.manual_seed(derive_seed(train.seed, "dropout", state.step, self.world.rank))
        for hook in self.hooks:
            batches = hook.before_step(self, batches)
        result = train_step(
            self.strategy,
            batches,
            learning_rate(train, state.step, train.steps),
            max_norm=train.grad_clip,
            n_targets=n_targets,
            transfer=self.batches.transfer,
        )
        sequences = state.sequences + self.batches.stage(state.step).global_batch_size
        self.state = replace(state, step=state.step + 1, sequences=sequences)
        for hook in self.hooks:
            hook.after_step(self, result)

    def _between(self) -> None:
        self.asked.clear()
        for hook in self.hooks:
            hook.between(self)
            if self.outcome:
                break


def _end(
    hook: Hook,
    loop: Loop,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    hook.end(loop, error)
