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


def write(folder: Path, **changes: object) -> Path:
    path = folder / "sweep.json"
    path.write_text(json.dumps(SPEC | changes))
    return path
