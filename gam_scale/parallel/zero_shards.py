"""Where ZeRO keeps each parameter's part and moments: all that is read of DeepSpeed's inside."""

from typing import Any

import torch
from torch import nn

from gam_scale.checkpoint.shard import KINDS, Shard, moments_of
from gam_scale.parallel.world import World


def of_stages_1_and_2(module: nn.Module, zero: Any, world: World) -> list[Shard]:
    """Whole parameters on every rank; moments for this rank's part of a flat concatenation."""
    for flat in zero.single_partition_of_fp32_groups:
        moments_of(zero.optimizer, flat)
    zero._lazy_init_hp_params_optimizer_state()  # views of each parameter's part in the flat state
    shards = []
    for name, parameter in module.named_parameters():
        shape, whole = tuple(parameter.shape), parameter.detach().view(-1)
        shards.append(Shard("param", name, shape, 0, whole, world.rank, world.world_size))
        part = parameter._hp_mapping
        if part is None:  # another rank's
            continue
        start = part.lp_fragment_address.start
        for kind in KINDS[1:]:
            shards.append(Shard(kind, name, shape, start, part.get_optim_state_fragment(kind)))
    return shards


def refresh_stages_1_and_2(module: nn.Module) -> None:
    """Copy the written parameters into the fp32 partition that the optimizer steps."""
    for parameter in module.parameters():
        if parameter._hp_mapping is not None:
            parameter._hp_mapping.update_hp()


def of_stage_3(module: nn.Module, zero: Any, rank: int) -> list[Shard]:
    """One part of every parameter on every rank, the last ones short or empty."""
    zero._partition_all_parameters()
    for flat in zero.fp32_partitioned_groups_flat:
        moments_of(zero.optimizer, flat)
    shards = []
    for name, parameter in module.named_parameters():
        size = parameter.partition_numel()  # padded to the same on every rank
        start = min(rank * size, parameter.ds_numel)
        length = min(size, parameter.ds_numel - start)
        for kind in KINDS:
            key = None if kind == "param" else kind
            part, _ = zero._get_fp32_opt_state_partition(
                parameter, release_swap_buffers=True, optim_state_key=key
            )
            flat = part.detach()[:length]
            shards.append(Shard(kind, name, tuple(parameter.ds_shape), start, flat))
    return shards


def refresh_stage_3(zero: Any) -> None:
    """Copy the written fp32 partitions into those that are gathered; gather what always is."""
    pairs = zip(zero.fp16_partitioned_groups_flat, zero.fp32_partitioned_groups_flat, strict=True)
    with torch.no_grad():
        for gathered, master in pairs:
            gathered.copy_(master)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
