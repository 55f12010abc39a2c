"""The shipped configs, cut to what one GPU does in seconds, or to what a CPU does in no time."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.accept.record import Check
from gam_scale.config import RunConfig, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU = (
    *("model.d_model=32", "model.memory.n_heads=2", "model.vocab_size=128", "data.seq_len=128"),
    *("model.n_layers=2", "train.global_batch_size=2", "train.micro_batch_size=2"),
)
"""Settings that cut any config to a CPU's size."""


def shipped(check: Check, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Return ``configs/NAME.json`` for one rank on this device, with ``overrides``."""
    here = [f"parallel.device={check.device.type}", "parallel.shard_ranks=0"]
    changed = [*here, *check.pick((), CPU), *overrides]
    config = load_config(str(CONFIGS / f"{name}.json"), changed)
    config.model.vocab_size = config.model.vocab_size or 32_768
    # A run sets this by itself.
    config.model.memory.max_horizon = config.model.memory.max_horizon or float(config.data.seq_len)
    return config


def sizes(config: RunConfig) -> tuple[int, int, int]:
    """Return a micro-batch's sequences, the tokens of each, and the model's width."""
    return config.train.micro_batch_size, config.data.seq_len, config.model.d_model


def usual_backend(device: torch.device) -> str:
    """Return what blocks compile with: on a CPU not inductor, which would take a minute there.

    What inductor does on a CPU would say nothing about a GPU. Graphs are decomposed as for a GPU,
    since torch's own softplus_backward has other strides on a CPU than in a trace.
    """
    return "inductor" if device.type == "cuda" else "aot_eager_decomp_partition"
