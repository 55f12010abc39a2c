"""Names of checkpoint folders, and the steps that they stand for."""

import re

CHECKPOINTS = "checkpoints"
"""The folder of a run that holds its checkpoints."""
BEST = "best.json"
"""The file beside checkpoints that says which of them has the lowest validation loss."""
EXACT = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})")


def name_of(step: int) -> str:
    """Return the name of a step's checkpoint folder, such as ``step-00000100``."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the step whose checkpoint has this name; None for any other name."""
    named = EXACT.fullmatch(name)
    return int(named[1]) if named else None
