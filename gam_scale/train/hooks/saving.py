"""Checkpoints: when one is due, what is in it, and when it becomes visible."""

from dataclasses import replace

from gam_scale import __version__
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.saver import Saver


class Saving(Hook):
    """Saves at the steps that ``checkpoint`` sets, at the last step, when asked and when stopped.

    A state that any hook refuses is not saved.

    A checkpoint is written while training goes on. It is committed between two steps, as soon as
    all ranks have written their shards.
    """

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    def ballot(self, loop: Loop) -> float:
        """Return whether this rank has written its shard."""
        return float(self._saver.ready)

    def agreed(self, loop: Loop, total: float) -> None:
        """Commit the checkpoint once all ranks have written."""
        if total == loop.world.world_size:
            self._saver.finish()

    def between(self, loop: Loop) -> None:
        """Save if a checkpoint is due."""
        step, settings = loop.state.step, loop.config.checkpoint
        due = step % settings.every_steps == 0 or step in settings.keep_steps
        if loop.done or due or loop.asked & {"save", "best"}:
            loop.doing("saving")
            with loop.clock.paused():
                self._save(loop, is_best="best" in loop.asked)

    def leave(self, loop: Loop) -> None:
        """Save if a signal stops the run or a decay begins; commit the checkpoint under way."""
        if loop.outcome in ("stopped", "annealing"):
            self._save(loop, is_best=False)
        self._saver.finish()

    def _save(self, loop: Loop, *, is_best: bool) -> None:
        loop.read_device()
        if not all([hook.accepts(loop) for hook in loop.hooks]):  # each is asked, on all ranks
            return
        state = replace(
            loop.state,
            data_fingerprint=loop.batches.stream.fingerprint(),
            world_size=loop.world.world_size,
            code_version=__version__,
        )
        for hook in loop.hooks:
            state = hook.saves(loop, state)
        carry = loop.strategy.carry
        carried = carry.state_dict() if carry is not None else {}
        self._saver.start(loop.strategy.shards(), state, is_best=is_best, carried=carried)
