"""The shipped configs cut to what one GPU does in seconds, and to what a CPU does in no time."""

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
"""Of any config, where there is no GPU."""


def shipped(check: Check, name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """``configs/NAME.json`` on one rank of this device, with some of its settings changed."""
    here = [f"parallel.device={check.device.type}", "parallel.shard_ranks=0"]
    changed = [*here, *check.pick((), CPU), *overrides]
    config = load_config(str(CONFIGS / f"{name}.json"), changed)
    config.model.vocab_size = config.model.vocab_size or 32_768
    # What a run puts there itself.
    config.model.memory.max_horizon = config.model.memory.max_horizon or float(config.data.seq_len)
    return config


def sizes(config: RunConfig) -> tuple[int, int, int]:
    """Sequences of a micro-batch, their tokens, the model's width."""
    return config.train.micro_batch_size, config.data.seq_len, config.model.d_model


def usual_backend(device: torch.device) -> str:
    """What blocks compile with: a CPU's own compiler takes a minute and shows nothing of a GPU.

    Decomposed as for a GPU: torch's own softplus_backward has other strides on a CPU than in a
    trace.
    """
    return "inductor" if device.type == "cuda" else "aot_eager_decomp_partition"
