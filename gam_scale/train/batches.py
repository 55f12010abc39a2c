"""The micro-batches that a run trains on, step by step, as one rank reads them."""

from collections.abc import Callable

from gam_scale.checkpoint.state import TrainState
from gam_scale.config import RunConfig
from gam_scale.config.stages import Stage, stage_number, stages_of
from gam_scale.data.packing import Batch
from gam_scale.data.stream import TrainStream, micro_batches
from gam_scale.data.transfer import Transfer
from gam_scale.parallel.context import part
from gam_scale.parallel.world import World


class Batches:
    """Loads this rank's micro-batches of each optimizer step.

    Args:
        state: the state that training goes on from; it says where the data stream begins and how
            many batches are left out.
        gives_up: returns whether a wait for batches should end without them.

    Attributes:
        stages: the stages of the run.
        transfer: brings the micro-batches to the device.
    """

    def __init__(
        self,
        config: RunConfig,
        stream: TrainStream,
        world: World,
        state: TrainState,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stream, self.transfer, self.gives_up = stream, Transfer(world.device), gives_up
        self.stages, self._world = stages_of(config), world
        self._left_out, self._first = state.left_out, state.first_sample
        self._rotation = config.model.rotation()

    def __call__(self, step: int) -> list[Batch]:
        """Return the micro-batches of 0-based ``step``, in memory that the transfer can read."""
        world, number = self._world, step + self._left_out
        share = world.reader, world.axes.readers
        i = stage_number(self.stages, number)
        stage, first = self.stages[i], 0 if i else self._first
        step_of_it = number - stage.first_step
        batches = micro_batches(self.stream, step_of_it, stage, *share, first, i)
        parts = (part(batch, world).turned(self._rotation) for batch in batches)
        return [self.transfer.prepare(each) for each in parts]

    def stage(self, step: int) -> Stage:
        """Return the stage that the batch of 0-based ``step`` is in, left-out batches counted."""
        return self.stages[stage_number(self.stages, step + self._left_out)]

    def begins_epoch(self, step: int) -> bool:
        """Whether rows carry state, and all of them start anew at 0-based ``step``."""
        before = self._first // self.stages[0].global_batch_size
        return self.stream.lanes is not None and self.stream.lanes.starts_at(before + step)
