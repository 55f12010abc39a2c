"""The engines as tests run them, each training the same tiny model on the same batches."""

from pathlib import Path

import numpy as np
from closeness import off
from torch import nn

from gam_scale.checkpoint.restore import restore
from gam_scale.checkpoint.state import TrainState, load_state
from gam_scale.checkpoint.store import CheckpointStore
from gam_scale.config import DataSetConfig, RunConfig
from gam_scale.data.packing import Batch
from gam_scale.data.stream import TrainStream, micro_batches, open_split
from gam_scale.parallel.build import build_strategy, initialise
from gam_scale.parallel.context import part
from gam_scale.parallel.world import World
from gam_scale.strict import from_dict
from gam_scale.train.saver import Saver
from gam_scale.train.step import train_step

BATCH = 6
SEQ_LEN = 48

ZERO_3 = {
    "engine": "deepspeed",
    "zero_stage": 3,
    # So that even the parameters of a tiny model are sharded.
    "deepspeed": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
}
ENGINES = {
    "torch": {"engine": "torch"},
    "zero0": {"engine": "deepspeed", "zero_stage": 0},
    "zero1": {"engine": "deepspeed", "zero_stage": 1},
    "zero2": {"engine": "deepspeed", "zero_stage": 2},
    "zero3": ZERO_3,
    "fsdp": {"engine": "fsdp"},
    "hybrid": {"engine": "fsdp", "shard_ranks": 2},
    "fsdp-keep": {"engine": "fsdp", "reshard_after_forward": False},
    "zero2-offload": {"engine": "deepspeed", "zero_stage": 2, "offload": "optimizer"},
    "zero3-offload": ZERO_3 | {"offload": "parameters"},
    "fsdp-offload": {"engine": "fsdp", "offload": "parameters"},
    "torch-context": {"engine": "torch", "context": 2},
    "zero1-context": {"engine": "deepspeed", "zero_stage": 1, "context": 2},
    "zero3-context": ZERO_3 | {"context": 2},
    "fsdp-context": {"engine": "fsdp", "context": 2},
}
"""Values of the ``parallel`` section."""

EVERYWHERE = ("torch", "zero0", "zero1", "zero2", "zero3", "fsdp")
"""Engines that run on any number of ranks."""

SMALL = {
    "d_model": 32,
    "n_layers": 2,
    "vocab_size": 320,
    "max_seq_len": SEQ_LEN,
    "dropout": 0.0,
    "gam": {"n_slots": 16},
}
"""The ``model`` section."""


class Trial:
    """A tiny model without dropout under one engine, trained step by step on a prepared set."""

    def __init__(
        self,
        world: World,
        sets: str,
        engine: str,
        micro_batch_size: int,
        precision: str = "fp32",
        compiled: bool = False,
        model: dict[str, object] | None = None,
        **train: object,
    ) -> None:
        self.config = from_dict(
            RunConfig,
            {
                "model": SMALL | (model or {}),
                "data": {"sets": [{"path": sets}], "seq_len": SEQ_LEN},
                "train": {
                    "steps": 100,
                    "global_batch_size": BATCH,
                    "micro_batch_size": micro_batch_size,
                    "precision": precision,
                    **train,
                },
                "parallel": ENGINES[engine],
            },
        )
        self.stream = open_stream(sets)
        self.world = world.arranged(self.config.parallel)
        self.strategy = build_strategy(self.config, self.world, compiled=compiled)
        initialise(self.strategy, self.config)

    def step(self, number: int) -> tuple[float, float]:
        """Train step ``number``; return the global mean loss and the gradient norm."""
        world = self.world
        share = world.reader, world.axes.readers
        batches = micro_batches(self.stream, number, self.config.train, *share)
        batches = [part(batch, world) for batch in batches]
        loss_sum, n_targets, norm = train_step(self.strategy, batches, 1e-2, max_norm=0.5)
        (total,) = world.sum(float(loss_sum))
        return total / n_targets, float(norm)

    def saved_and_going_on(self, folder: Path, first: int, done: int, more: int) -> list[float]:
        """Save in the background and train ``more`` steps meanwhile; return their losses.

        The caller has trained ``done`` steps from ``first`` on: that state is saved. The further
        steps change the engine's memory while the shards are being written.
        """
        middle = first + done
        saver = Saver(CheckpointStore(folder), self.world, self.config, b"tokenizer")
        state = TrainState(step=middle, optimizer_steps=done)
        saver.start(self.strategy.shards(), state, is_best=True)
        losses = [self.step(middle + i)[0] for i in range(more)]
        saver.finish()
        return losses

    def losses_after(self, checkpoint: Path, steps: int) -> list[float]:
        """Restore a checkpoint and return the losses of the steps that follow it."""
        restore(self.strategy, checkpoint)
        first = load_state(checkpoint).step
        return [self.step(first + i)[0] for i in range(steps)]

    def everything(self) -> list[tuple[str, bytes]]:
        """Return the bytes of this rank's part of the parameters and optimizer states, by key."""
        return [(s.key, s.data.numpy().tobytes()) for s in self.strategy.shards()]

    def weights(self) -> float:
        """Return the sum of absolute values of all parameters, over all ranks."""
        parts = [s.own_part() for s in self.strategy.shards() if s.kind == "param"]
        return self.world.sum(sum(float(p.data.double().abs().sum()) for p in parts))[0]


def differences(cut: nn.Module, whole: nn.Module, batch: Batch, world: World) -> list[float]:
    """Return how far the loss and each gradient of ``cut`` are from those of ``whole``, relatively.

    ``cut`` has its sequences divided over the ranks, ``whole`` has them whole.
    """
    expected = whole(batch.tokens, batch.targets, batch.layout)
    expected.backward()
    here = part(batch, world)
    loss = cut(here.tokens, here.targets, here.layout)
    loss.backward()
    distances = [abs(world.sum(loss.item())[0] / expected.item() - 1)]
    for a, b in zip(cut.parameters(), whole.parameters(), strict=True):
        world.all_reduce(a.grad)
        distances.append(off(a.grad, b.grad))
    return distances


def open_stream(sets: str) -> TrainStream:
    """Open the training stream that every trial reads."""
    splits = open_split([DataSetConfig(sets)], "train", "unused")
    return TrainStream(splits, [1.0], SEQ_LEN, "reset", 0, 1 << 20)


def first_step(stream: TrainStream) -> int:
    """Return the step before the one that trains the epoch's last sequence, a shorter one."""
    _, order = stream.locate(np.arange(stream.epoch_sequences))
    return max(0, int(np.argmax(order)) // BATCH - 1)
