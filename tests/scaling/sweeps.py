"""The file of a small sweep, with changes for each test."""

import json
from pathlib import Path

SPEC = {
    "families": [{"name": "gam"}, {"name": "transformer", "block": "attention"}],
    "widths": [64, 128],
    "budgets": [1e6, 4e6],
    "vocab_size": 320,
    "data": "somewhere",
    "seq_len": 48,
}
SMALL = {
    "families": [{"name": "gam"}],
    "widths": [32],
    "budgets": [2000, 4000],
    "dial": {"batch_size": 2},
    "set": {
        "train": {"compile": "off"},
        "parallel": {"engine": "torch", "device": "cpu"},
        "log": {"wandb": "off", "tensorboard": False},
        "eval": {"every_steps": 0, "max_tokens": 200, "batch_size": 2},
    },
}
"""Changes to :data:`SPEC` that leave a sweep of one family, which trains in seconds."""


def write(folder: Path, **changes: object) -> Path:
    """Write :data:`SPEC` with ``changes`` to a file, and return its path."""
    path = folder / "sweep.json"
    path.write_text(json.dumps(SPEC | changes))
    return path
