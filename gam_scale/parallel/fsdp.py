"""PyTorch's FSDP2 (``fully_shard``): parameters, gradients and optimizer sharded by rows."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.config import RunConfig
from gam_scale.data.packing import Batch
from gam_scale.model.lm import LanguageModel
from gam_scale.parallel.fsdp_precision import keep_fp32
from gam_scale.parallel.optimizer import build_optimizer
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.whole import Piece
from gam_scale.parallel.world import World


class FSDPStrategy(Strategy):
    """Shards over the shard and context axes together; replicates along the replicate axis."""

    def __init__(self, module: LanguageModel, world: World, config: RunConfig) -> None:
        """Shard ``module``, which is on the meta device, so that no rank ever holds all of it."""
        self.module, self.world, self.precision = module, world, config.train.precision
        self.mesh = world.sharding_mesh
        shard_module(module, self.mesh, config)
        offloads = config.parallel.offload == "parameters"
        module.to_empty(device="cpu" if offloads else world.device)
        self.optimizer = build_optimizer(module, config)
        self.optimizer.cut(self._pieces(), self.mesh.get_group("shard"), world.device)

    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """See :meth:`Strategy.backward`."""
        # Gradients are sharded after every micro-batch, but summed over replicas after the last.
        whole, *_ = _units(self.module)
        whole.set_requires_all_reduce(last)
        with self._autocast():
            loss = self.module(*batch)
        # FSDP averages over ranks: undone here, for `scale` divides by the global token count.
        (loss * (scale * self.world.world_size)).backward()
        return loss.detach()

    def _clip(self, max_norm: float) -> Tensor:
        norm = super()._clip(max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def shards(self) -> list[Shard]:
        """See :meth:`Strategy.shards`."""
        # After a forward pass without a backward pass, some units are still gathered.
        for unit in _units(self.module):
            unit.reshard()
        replica = self.mesh.get_local_rank("replicate")
        replicas = replica, self.mesh.size(0)
        everywhere = self.world.rank, self.world.world_size
        algorithms = self.optimizer.algorithms()
        shards = []
        for name, parameter in self.module.named_parameters():
            kept = self.optimizer.local_states(parameter, algorithms[name])
            for kind, tensor in {PARAM: parameter.detach(), **kept}.items():
                if isinstance(tensor, DTensor):
                    place = tuple(tensor.shape), _offset(parameter), tensor.to_local()
                    shards.append(Shard(kind, name, *place, *replicas))
                else:
                    shards.append(Shard.whole(kind, name, tensor, *everywhere))
        for name, kept in self.optimizer.owned_states().items():
            shards += [Shard.whole(kind, name, tensor, *replicas) for kind, tensor in kept.items()]
        return shards

    def _pieces(self) -> Iterator[Piece]:
        """Yield the rows that this rank has of each parameter."""
        for name, parameter in self.module.named_parameters():
            assert isinstance(parameter, DTensor)
            shape, rows = tuple(parameter.shape), parameter.to_local()
            first = _offset(parameter)[0] * math.prod(shape[1:]) if rows.numel() else 0
            yield Piece(name, shape, parameter, 0, first, rows.numel())


def _offset(parameter: Tensor) -> tuple[int, ...]:
    """Return where this rank's part of a parameter begins, in each dimension."""
    assert isinstance(parameter, DTensor)
    place = parameter.shape, parameter.device_mesh, parameter.placements
    return tuple(compute_local_shape_and_global_offset(*place)[1])


def shard_module(module: LanguageModel, mesh: DeviceMesh, config: RunConfig) -> None:
    """Make each block, and then the rest (embeddings, final norm), a unit that is gathered as one.

    See docs/gpu.md for what is sent.
    """
    parallel = config.parallel
    bf16 = config.train.precision == "bf16"
    options: dict[str, Any] = {
        "mesh": mesh,
        # Parameters are gathered in bf16, except those that keep fp32; gradients are reduced in
        # fp32. Autocast still decides what is computed in which.
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if bf16 else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        "offload_policy": (
            CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
            if parallel.offload == "parameters"
            else OffloadPolicy()
        ),
    }
    *others, last = module.blocks
    for block in others:
        fully_shard(block, **options, reshard_after_forward=parallel.reshard_after_forward)
    # The backward pass begins with these two: if freed, they would only be gathered again.
    fully_shard(last, **options, reshard_after_forward=False)
    fully_shard(module, **options, reshard_after_forward=False)
    # Start to gather each unit before the previous one is called, even where the host is late; in
    # the backward pass FSDP does so by itself.
    units = _units(module)
    for before, after in pairwise(units):
        before.set_modules_to_forward_prefetch([after])
    if bf16:
        for unit in units:
            keep_fp32(unit, torch.bfloat16)


def _units(module: LanguageModel) -> list[FSDPModule]:
    """Return the units that :func:`shard_module` has made: the whole module, then its blocks."""
    return cast(list[FSDPModule], [module, *module.blocks])
