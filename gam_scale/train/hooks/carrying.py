"""Rows that go on: each step's batches begin with what those of the last step left behind."""

from gam_scale.data.packing import Batch
from gam_scale.train.loop import Hook, Loop
from gam_scale.train.step import StepResult


class Carrying(Hook):
    """Gives the batches what the strategy keeps for their rows (``data.carry_state``)."""

    def before_step(self, loop: Loop, batches: list[Batch]) -> list[Batch]:
        """The same batches with the states that they continue: none where an epoch begins."""
        carry = loop.strategy.carry
        if carry is None:
            return batches
        if loop.batches.begins_epoch(loop.state.step):
            carry.clear()
        pairs = zip(batches, carry.parts, strict=True)
        return [batch._replace(carried=rows) for batch, rows in pairs]

    def after_step(self, loop: Loop, result: StepResult) -> None:
        """Forget what may have made a gradient infinite; this waits for the device."""
        carry = loop.strategy.carry
        if carry is not None and not result.grad_norm.isfinite():
            carry.clear()
