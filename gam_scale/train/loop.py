"""The training loop: one optimizer step after another, and what hooks do around each."""

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
    """Something that happens while a model trains, beside the training itself.

    A hook overrides what it wants to be told. Every event reaches the hooks in the order of their
    list, on all ranks alike::

        start                    once, before the first batch
        between                  where a start begins with an evaluation that a signal cut short
        for every step:
            before_batch         its batches are waited for next
            ballot, agreed       a number of each hook, summed over ranks in one sum for all of them
            before_step          the device is given the step next; batches may be replaced
            after_step           it was given the step, and may still be computing it
            between              the step counts: ``loop.state`` is that after it
                look             within it, where a line is logged or a checkpoint is saved
                line             the figures of a line that is due
                saves            the state of a checkpoint that is due
            over                 all that the step brought about is done
        leave                    the run ends, stops, rolls back or anneals (``loop.outcome``)
        end                      in any case, an error included, the last hook first

    ``doing`` comes whenever the loop, or a hook, begins what may take long.

    What a hook may do: read all of the loop; replace ``loop.state``; in :meth:`between` ask hooks
    behind it for a line or a checkpoint (:meth:`Loop.ask`); and in :meth:`agreed` or
    :meth:`between` end the loop (:meth:`Loop.finish`), after which the event reaches no further
    hook and the step's remaining events but ``over`` do not come. What it decides so, it must
    decide on all ranks alike: :meth:`ballot` is there to agree. Only between steps may it wait for
    the device, and only at steps of its own: the host must stay ahead. It must not draw from
    torch's generators. What it keeps from step to step ends with the process, unless :meth:`saves`
    puts it into the state.
    """

    def start(self, loop: "Loop") -> None:
        """Before the first batch; again after a rollback, with another loop."""

    def doing(self, loop: "Loop", what: str) -> None:
        """The loop begins something: "reading data", "training", "evaluating", "saving", ..."""

    def before_batch(self, loop: "Loop") -> None:
        """The batches of the step after ``loop.state.step`` are waited for next."""

    def ballot(self, loop: "Loop") -> float:
        """This rank's number for :meth:`agreed`, known to its host."""
        return 0.0

    def agreed(self, loop: "Loop", total: float) -> None:
        """The sum of all ranks' ballots of this hook."""

    def before_step(self, loop: "Loop", batches: list[Batch]) -> list[Batch]:
        """The micro-batches to train on, in CPU memory: those given, or others for them."""
        return batches

    def after_step(self, loop: "Loop", result: StepResult) -> None:
        """Step ``loop.state.step`` is under way on the device; not to be waited for."""

    def between(self, loop: "Loop") -> None:
        """Between two steps."""

    def look(self, loop: "Loop") -> None:
        """The device is waited for anyway: take in what it knows."""

    def line(self, loop: "Loop", figures: dict[str, Any]) -> None:
        """Add to the figures of a line, plain numbers by name."""

    def saves(self, loop: "Loop", state: TrainState) -> TrainState:
        """What a checkpoint is to say, with this hook's part in it."""
        return state

    def over(self, loop: "Loop") -> None:
        """The step is over, or the loop ends instead of it."""

    def leave(self, loop: "Loop") -> None:
        """Training ends in good order, for the reason ``loop.outcome``."""

    def end(self, loop: "Loop", error: BaseException | None) -> None:
        """Give back what :meth:`start` took; ``error`` is what ends the loop, if one does."""


class Loop:
    """Trains from ``state`` to ``config.train.steps``; see :class:`Hook` for all the rest.

    Attributes:
        state: after the last step.
        clock: of training time, which what is no training pauses.
        outcome: why the loop ends; None: it goes on.
        asked: what hooks want between two steps: a line, a checkpoint, one that is the best so far.
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
        self._first = min(state.step + 1, config.train.steps)  # that step may be to evaluate

    @property
    def done(self) -> bool:
        """Whether all steps are trained."""
        return self.state.step == self.config.train.steps

    @property
    def is_first(self) -> bool:
        """Whether ``state`` is that after the first step of this loop."""
        return self.state.step == self._first

    def ask(self, what: Due) -> None:
        """Have a line logged, or a checkpoint saved, before the next step."""
        self.asked.add(what)

    def finish(self, outcome: Outcome) -> None:
        """Train no further."""
        self.outcome = outcome

    def doing(self, what: str) -> None:
        """Tell all hooks what begins."""
        for hook in self.hooks:
            hook.doing(self, what)

    def look(self) -> None:
        """Have all hooks take in what the device knows, for which it is waited for."""
        for hook in self.hooks:
            hook.look(self)

    def run(self) -> Outcome:
        """Train until done, or until a hook ends it."""
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
                for hook in self.hooks:  # before data is waited for that may never come
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
        """The targets of all ranks, in one sum with all ballots.

        Numbers of the hosts: the device computes the last step meanwhile.
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
        # Dropout masks follow from the step, so a resumed run draws the same ones.
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
