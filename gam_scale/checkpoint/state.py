"""The state of a run at a checkpoint, beside tensors."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gam_scale.checkpoint.verify import STATE
from gam_scale.errors import UserError
from gam_scale.strict import option, read_record


@dataclass
class TrainState:
    """What a run is, besides weights and moments. Everything else follows from it.

    Data order, dropout masks and learning rates are pure functions of the seed and the step, so
    there is no generator or iterator state to keep.
    """

    step: int = option(0, "Optimizer steps done.", at_least=0)
    sequences: int = option(0, "Sequences consumed: where the data stream goes on.", at_least=0)
    first_sample: int = option(
        0, "Of the stream: what step 0 reads first, where the run continues another.", at_least=0
    )
    left_out: int = option(
        0,
        "Global batches passed over after loss spikes: step s reads batch s + left_out.",
        at_least=0,
    )
    data_fingerprint: str = ""
    """Identity of the data stream (sets, weights, context, seed)."""
    optimizer_steps: int = option(
        0,
        "Steps that were applied: Adam's own count, fewer than ``step`` after skipped ones.",
        at_least=0,
    )
    best_val_loss: float | None = None
    """Lowest validation loss so far."""
    best_of: str = ""
    """Of which set that is, as ``checkpoint.best`` names it."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Counts of tokens and sums since the last logged line."""
    noise: list[float] = field(default_factory=list)
    """Moving sums of the gradients' noise and of their square, where they are measured."""
    world_size: int = option(
        1, "Ranks that saved it; a resumed run may have another number.", at_least=1
    )
    code_version: str = ""
    to_evaluate: bool = False
    """A signal came before the evaluation at this step was done: it is still to come, and with it
    the step's line."""

    @property
    def logged_step(self) -> int:
        """The last step whose line, if it has one, belongs to the run up to here."""
        return self.step - self.to_evaluate


def load_state(checkpoint: Path) -> TrainState:
    """The train state of a checkpoint.

    Raises:
        UserError: it is damaged, or of another step than its folder's name says.
    """
    state: TrainState = read_record(TrainState, checkpoint / STATE)
    named = re.fullmatch(r"step-([0-9]+)", checkpoint.name)
    if named and int(named[1]) != state.step:
        raise UserError(f"{checkpoint / STATE}: step is {state.step}; expected {int(named[1])}")
    return state
