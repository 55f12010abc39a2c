"""The DeepSpeed engine (ZeRO stage 0), kept from compiling C++ at start-up."""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from gam_scale.config import RunConfig
from gam_scale.data.packing import Batch
from gam_scale.data.stream import n_micro_batches
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, quiet, and without the C++ extensions it would build at first use."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it looked for a GPU
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # On a CPU, init_distributed compiles this one (about 80 s); gloo does its work as well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class DeepSpeedStrategy(Strategy):
    """Runs the step through ``deepspeed.initialize``'s engine, with our optimizer and clipping."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, world: World, config: RunConfig
    ) -> None:
        deepspeed = import_deepspeed(world.device)
        deepspeed.init_distributed(
            dist_backend="nccl" if world.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
        )
        self.module, self.world, self.precision = module, world, config.train.precision
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=engine_config(config, world)
        )
        # DeepSpeed averages over ranks and accumulation steps; our losses are already divided by
        # the global token count, so both averages are undone in advance.
        self.undo_average = world.world_size * self.engine.gradient_accumulation_steps()

    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """See :meth:`Strategy.backward`."""
        loss = self.engine(batch.tokens, batch.targets, batch.positions)
        self.engine.backward(loss * (scale * self.undo_average))
        assert last == self.engine.is_gradient_accumulation_boundary()
        if not last:
            self.engine.step()  # between boundaries this only counts the micro-batch
        return loss.detach()

    def step(self, lr: float) -> None:
        """See :meth:`Strategy.step`."""
        self._set_lr(lr)
        self.engine.step()

    def skip(self) -> None:
        """See :meth:`Strategy.skip`."""
        self.engine.zero_grad()
        self.engine.micro_steps += 1  # the engine has no call that ends a step without applying it


def engine_config(config: RunConfig, world: World) -> dict[str, Any]:
    """DeepSpeed's own configuration, derived from ours."""
    train = config.train
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": n_micro_batches(train, world.world_size),
        "zero_optimization": {"stage": 0},
        # Clipping is ours: stage 0 in fp32 would report a norm of 0.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
        "torch_autocast": {"enabled": train.precision == "bf16", "dtype": "bfloat16"},
    }
