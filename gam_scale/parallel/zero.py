"""The DeepSpeed engine, ZeRO stages 0 to 3, kept from compiling C++ at start-up."""

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gam_scale.checkpoint.shard import Shard
from gam_scale.config import RunConfig
from gam_scale.data.packing import Batch
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.parallel import world as ranks
from gam_scale.parallel import zero_lean, zero_shards
from gam_scale.parallel.blocks import prepare_blocks
from gam_scale.parallel.implementations import choose_implementations
from gam_scale.parallel.optimizer import GroupedOptimizer, build_optimizer
from gam_scale.parallel.plain import whole_shards
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World
from gam_scale.parallel.zero_config import check_offload_dir, engine_config


class DeepSpeedStrategy(Strategy):
    """Runs the step through ``deepspeed.initialize``'s engine, with a torch optimizer."""

    def __init__(self, config: RunConfig, world: World, *, compiled: bool) -> None:
        deepspeed = import_deepspeed(world.device)
        deepspeed.init_distributed(
            dist_backend="nccl" if world.device.type == "cuda" else "gloo",
            auto_mpi_discovery=False,
            verbose=False,
        )
        self.world, self.precision = world, config.train.precision
        self.stage = config.parallel.zero_stage
        options = engine_config(config, world.axes.readers)
        if config.parallel.offload_dir:
            check_offload_dir(config.parallel.offload_dir)
        if self.stage == 3:
            module = _sharded_model(deepspeed, config, options)
        else:
            module = outline(config.model).to_empty(device=world.device)
        choose_implementations(module, config, world)
        self.compilation = prepare_blocks(
            module,
            config.train.recompute,
            compiled=compiled,
            may_fail=config.train.compile == "auto",
        )
        self.module = module
        self.engine, zero, _, _ = deepspeed.initialize(
            model=module, optimizer=build_optimizer(module, config), config=options
        )
        ranks.at_release(self.engine.destroy)  # the engine's hooks would keep it alive for ever
        # In stages 1 to 3 ZeRO's optimizer wraps ours, which steps this rank's flat partition.
        self.zero = zero if self.stage else None
        self.optimizer = zero.optimizer if self.stage else zero
        if self.stage:
            assert world.axes.holders == dist.get_world_size(zero.dp_process_group)
            parts = zero_shards.flats(module, zero, self.stage, world.rank)
            pieces = [piece for _, pieces in parts for piece in pieces]
            self.optimizer.cut(pieces, zero.dp_process_group, world.device)
        self.clipping: zero_lean.Clipping | None = None
        if config.parallel.offload == "none":
            self._replace_methods()
        # Stage 3 averages over ranks, whatever it is told. Our losses are already divided by the
        # global token count, so the average is undone in advance.
        self.undo_average = world.world_size if self.stage == 3 else 1

    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """See :meth:`Strategy.backward`."""
        # Set, not counted by the engine: stages of a run differ in their micro-batches per step.
        self.engine.set_gradient_accumulation_boundary(last)
        loss = self.engine(*batch)
        self.engine.backward(loss * (scale * self.undo_average), scale_wrt_gas=False)
        if not last:
            self.engine.step()  # between boundaries this only counts the micro-batch
        return loss.detach()

    def _replace_methods(self) -> None:
        if self.stage == 3:
            self.clipping = zero_lean.replace_methods_of_stage_3(self.zero, self.world)
        elif self.stage:
            self.clipping = zero_lean.replace_methods_of_stages_1_and_2(self.zero, self.world)
        elif self.world.world_size == 1:
            # Otherwise gradients are copied into a bucket and back, to no purpose.
            self.engine.enable_backward_allreduce = False

    def step(self, lr: float, max_norm: float) -> Tensor:
        """See :meth:`Strategy.step`."""
        if self.zero is None:  # DeepSpeed's norm would be 0 in fp32, and not be tested
            norm = super().step(lr, max_norm)
            self.engine.micro_steps += 1  # no method of the engine ends a step without applying it
            return norm
        self._set_lr(lr)
        self.zero.clip_grad = max_norm
        self.engine.step()
        on_gpu = self.world.device.type == "cuda"
        if on_gpu and self.stage == 3 and not self.zero.persistent_parameters:
            # DeepSpeed gathers what persists after the step, and waits for it. If nothing does, its
            # stream of gathers would not wait for the step, and read parameters that still change.
            torch.cuda.synchronize(self.world.device)
        if self.clipping is not None:
            return self.clipping.norm
        return torch.as_tensor(self.zero._global_grad_norm)  # offloaded: DeepSpeed tested it

    def shards(self) -> list[Shard]:
        """See :meth:`Strategy.shards`."""
        if self.stage == 0:
            return whole_shards(self.module, self.optimizer, self.world)
        if self.stage == 3:
            return zero_shards.of_stage_3(self.module, self.zero, self.world)
        return zero_shards.of_stages_1_and_2(self.module, self.zero, self.world)

    def after_write(self, shards: list[Shard]) -> None:
        """See :meth:`Strategy.after_write`."""
        if self.stage == 3:
            zero_shards.refresh_stage_3(self.module, self.zero, self.world, shards)
        elif self.stage:
            zero_shards.refresh_stages_1_and_2(self.module, self.zero, self.world, shards)


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed with few messages, and keep it from building C++ extensions at first use."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it looked for a GPU
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # its own calls
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # Otherwise it warns at each start that it was not tested with our optimizer; our tests do so.
    if GroupedOptimizer not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(GroupedOptimizer)
    # On a CPU, init_distributed would compile this operator (about 80 s), whose work gloo can do.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _sharded_model(deepspeed: Any, config: RunConfig, options: dict[str, Any]) -> LanguageModel:
    """Build the model under ``zero.Init``, which shards a module's parameters once they exist."""
    with deepspeed.zero.Init(config_dict_or_path=options):
        model = LanguageModel(config.model)
    # A block is gathered and freed as a whole, so that its computation can be one graph.
    deepspeed.utils.set_z3_leaf_modules(model, list({type(block) for block in model.blocks}))
    # The head's weight, the embedding's or its own, is read outside its module.
    deepspeed.zero.register_external_parameter(model, model.head_weight)
    return model
