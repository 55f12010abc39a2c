"""The state of a run at a checkpoint, apart from tensors."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gam_scale.checkpoint.names import step_of
from gam_scale.checkpoint.verify import STATE
from gam_scale.errors import UserError
from gam_scale.strict import option, read_record


@dataclass
class TrainState:
    """What a run goes on from, besides tensors; everything else follows from the config.

    Data order, dropout masks and learning rates are pure functions of the seed and the step, so
    there is no generator or iterator state to keep.
    """

    step: int = option(0, "optimizer steps done", at_least=0)
    sequences: int = option(
        0, "sequences consumed, after which the data stream continues", at_least=0
    )
    first_sample: int = option(
        0,
        "first sample of the stream that step 0 reads, above 0 if the run continues another",
        at_least=0,
    )
    left_out: int = option(
        0,
        "global batches left out after loss spikes: step s reads batch s + left_out",
        at_least=0,
    )
    data_fingerprint: str = ""
    """Identity of the data stream (sets, weights, context, seed)."""
    optimizer_steps: int = option(
        0,
        "steps that were applied, as Adam counts them: fewer than ``step`` after skipped ones",
        at_least=0,
    )
    best_val_loss: float | None = None
    """Lowest validation loss so far."""
    best_of: str = ""
    """The data set of that loss, as ``checkpoint.best`` names it."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Counts of tokens and sums since the last logged line."""
    noise: list[float] = field(default_factory=list)
    """Moving sums of the gradients' variance and squared length, if these are measured."""
    last_losses: list[float] = field(default_factory=list)
    """Losses of the last steps, if spikes are looked for."""
    world_size: int = option(
        1, "ranks that saved the checkpoint; a resumed run may have another number", at_least=1
    )
    code_version: str = ""
    to_evaluate: bool = False
    """Whether a signal came before the evaluation at this step was done: the evaluation is still to
    come, and with it the step's log line."""

    @property
    def logged_step(self) -> int:
        """The last step whose log line, if it has one, belongs to the run up to this checkpoint."""
        return self.step - self.to_evaluate


def load_state(checkpoint: Path) -> TrainState:
    """Load the train state of a checkpoint.

    Raises:
        UserError: the state is damaged, or of another step than the folder's name says.
    """
    state: TrainState = read_record(TrainState, checkpoint / STATE)
    named = step_of(checkpoint.name)
    if named is not None and named != state.step:
        raise UserError(f"{checkpoint / STATE}: step is {state.step}; expected {named}")
    return state
