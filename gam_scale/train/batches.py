"""What a run trains on, step by step, as one rank reads it."""

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
    """The micro-batches of each optimizer step.

    Args:
        state: of a run that trains on; it says which batches are left out.
        gives_up: whether one that is waited for is not worth it any more.

    Attributes:
        stages: of the run.
        transfer: brings them to the device.
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
        """Of the step after ``step`` of them, where :attr:`transfer` can fetch them."""
        world, number = self._world, step + self._left_out
        share = world.reader, world.axes.readers
        i = stage_number(self.stages, number)
        stage, first = self.stages[i], 0 if i else self._first
        step_of_it = number - stage.first_step
        batches = micro_batches(self.stream, step_of_it, stage, *share, first, i)
        parts = (part(batch, world).turned(self._rotation) for batch in batches)
        return [self.transfer.prepare(each) for each in parts]

    def stage(self, step: int) -> Stage:
        """That of the step after ``step`` of them: of its batch, where some were left out."""
        return self.stages[stage_number(self.stages, step + self._left_out)]

    def begins_epoch(self, step: int) -> bool:
        """Whether all rows of the step after ``step`` start anew, where rows go on."""
        before = self._first // self.stages[0].global_batch_size
        return self.stream.lanes is not None and self.stream.lanes.starts_at(before + step)
