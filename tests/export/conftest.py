"""Fixtures: checkpoints of small, untrained models, and their tokenizer."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gam_scale.checkpoint.canonical import write_shards
from gam_scale.checkpoint.shard import Shard
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import (
    AttentionConfig,
    DataConfig,
    GAMConfig,
    MambaConfig,
    MemoryConfig,
    ModelConfig,
    RunConfig,
)
from gam_scale.model.lm import build_model


def _config(block: str) -> RunConfig:
    hybrid = block == "hybrid"
    layers = {"gam": ["static"], "hybrid": [*["gam_delta"] * 3, "attention"]}
    model = ModelConfig(
        layers=layers.get(block, [block]),
        position="none" if hybrid else "learned",
        d_model=32,
        n_layers=4 if hybrid else 2,
        vocab_size=320,
        max_seq_len=48,
        gam=GAMConfig(n_slots=16),
        attention=AttentionConfig(n_heads=4, n_kv_heads=2 * hybrid, qk_norm=hybrid),
        mamba=MambaConfig(expand=2),
        memory=MemoryConfig(n_heads=2),
        tied_head=block != "delta",
        logit_softcap=0.1 * hybrid,
    )
    return RunConfig(model, DataConfig(seq_len=48, documents="concatenate"))


@pytest.fixture(scope="session")
def tokenizer_file(prepared_set: Path) -> Path:
    return prepared_set / "tokenizer.model"


@pytest.fixture
def config() -> RunConfig:
    return _config("gam")


@pytest.fixture
def checkpoint(tokenizer_file: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Return a function: ``checkpoint(block)`` writes a step-* folder with weights far from zero.

    The model of delta layers has an untied head; the other models' heads are tied.
    """

    def make(block: str = "gam") -> Path:
        config = _config(block)
        model = build_model(config.model, seed=0)
        generator = torch.Generator().manual_seed(1)
        shards = []
        for name, p in model.named_parameters():
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
            shards.append(Shard.whole("param", name, p.detach()))
        store = CheckpointStore(tmp_path / f"run-{block}" / "checkpoints")
        write_shards(store.begin(5), 0, 1, shards)
        return store.commit(1, TrainState(step=5), config, tokenizer_file.read_bytes())

    return make
