"""A small sweep's file, as tests change it."""

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
"""What makes that file's sweep a matter of seconds, of one family."""


def write(folder: Path, **changes: object) -> Path:
    path = folder / "sweep.json"
    path.write_text(json.dumps(SPEC | changes))
    return path
