"""Carried states: each row of a step's batches goes on with the state that the last step left."""

from gam_scale.data.packing import Batch
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult


class Carrying(Hook):
    """Gives batches the states that the strategy keeps for their rows (``data.carry_state``)."""

    def before_step(self, loop: Loop, batches: list[Batch]) -> list[Batch]:
        """Return the batches with the states that their rows continue, cleared for a new epoch."""
        carry = loop.strategy.carry
        if carry is None:
            return batches
        if loop.batches.begins_epoch(loop.state.step):
            carry.clear()
        pairs = zip(batches, carry.parts, strict=True)
        return [batch._replace(carried=rows) for batch, rows in pairs]

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Clear the states if the gradient is not finite, for which the host waits."""
        carry = loop.strategy.carry
        if carry is not None and not result.grad_norm.isfinite():
            carry.clear()
