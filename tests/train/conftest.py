"""A config of a tiny run, and what two runs are compared by."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

COMPARED = ("step", "tokens", "loss", "lr", "grad_norm", "skipped_steps", "val_loss")


@pytest.fixture
def tiny(prepared_set: Path) -> Callable[..., dict]:
    """``tiny(run_dir, section={...})`` -> the parsed JSON of a config that trains in a second."""

    def make(run_dir: Path, **changes: dict) -> dict:
        config = {
            "model": {
                "d_model": 32,
                "n_layers": 2,
                "max_seq_len": 48,
                "dropout": 0.1,
                "gam": {"n_slots": 16},
            },
            "data": {"sets": [{"path": str(prepared_set)}], "seq_len": 48},
            "train": {
                "steps": 20,
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "lr": 3e-3,
                "warmup_steps": 3,
                "compile": "off",
            },
            "parallel": {"engine": "torch", "device": "cpu"},
            "eval": {"every_steps": 10, "max_tokens": 200, "batch_size": 2},
            "checkpoint": {"every_steps": 6},
            "log": {
                "run_dir": str(run_dir),
                "every_steps": 4,
                "wandb": "off",
                "tensorboard": False,
            },
        }
        for section, values in changes.items():
            config[section] |= values
        return config

    return make


@pytest.fixture
def curve() -> Callable[[Path], list[dict]]:
    """``curve(run_dir)`` -> the logged lines without what depends on the clock."""

    def read(run_dir: Path) -> list[dict]:
        lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        return [{k: line.get(k) for k in COMPARED} for line in lines]

    return read
