"""Names of checkpoints' folders, by their steps."""

import re

BEST = "best.json"
"""Beside checkpoints: which of them has the lowest validation loss."""
EXACT = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})")


def name_of(step: int) -> str:
    """``step-00000100``."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step whose checkpoint has this name; None: it is a name of something else."""
    named = EXACT.fullmatch(name)
    return int(named[1]) if named else None
