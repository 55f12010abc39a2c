"""Small checkpoints made without a run."""

from pathlib import Path

import torch

from gam_scale.checkpoint.canonical import CanonicalTensors, write_shards
from gam_scale.checkpoint.state import TrainState
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import GAMConfig, ModelConfig, RunConfig, TrainConfig
from gam_scale.model.lm import build_model
from gam_scale.parallel.algorithm import ADAMW
from gam_scale.parallel.optimizer import GroupedOptimizer
from gam_scale.parallel.plain import whole_shards
from gam_scale.parallel.world import World


def small_model(d_model: int = 8):
    config = ModelConfig(
        d_model=d_model,
        n_layers=1,
        vocab_size=11,
        max_seq_len=6,
        dropout=0.0,
        gam=GAMConfig(n_slots=3),
    )
    return build_model(config, seed=0)


def adamw(model) -> GroupedOptimizer:
    group = {"params": list(model.parameters()), "algorithm": ADAMW, "lr_multiplier": 1.0}
    group["names"] = [name for name, _ in model.named_parameters()]
    group["shapes"] = [tuple(p.shape) for p in model.parameters()]
    return GroupedOptimizer([group], TrainConfig(lr=1e-2))


def trained(d_model: int = 8):
    model = small_model(d_model)
    optimizer = adamw(model)
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def shards_of(model, optimizer, rank: int = 0, n_ranks: int = 1):
    world = World(rank, n_ranks, rank, n_ranks, torch.device("cpu"))
    return whole_shards(model, optimizer, world)


def save(folder: Path, step: int, model_and_optimizer=None, n_ranks: int = 1) -> CheckpointStore:
    store = CheckpointStore(folder)
    model, optimizer = model_and_optimizer or trained()
    partial = store.begin(step)
    for rank in range(n_ranks):
        parts = [s.own_part() for s in shards_of(model, optimizer, rank, n_ranks)]
        write_shards(partial, rank, n_ranks, parts)
    store.commit(n_ranks, TrainState(step=step, optimizer_steps=3), RunConfig(), b"tok")
    return store


def whole(tensors: CanonicalTensors, key: str) -> torch.Tensor:
    """Read one tensor of a checkpoint whole, by its key ``kind.name``."""
    kind, name = key.split(".", 1)
    shape, _ = tensors.content()[key]
    return tensors.read(kind, name, [0] * len(shape), shape)
