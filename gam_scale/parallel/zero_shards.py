"""Where ZeRO keeps each parameter's part and moments: all that is read of DeepSpeed's inside."""

from collections.abc import Iterator
from dataclasses import replace
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
    shards = []
    for group, parts in _groups_of_stage_3(module, zero, rank):
        if zero._swappable_optimizer_subgroup(group):
            parts = [replace(part, data=part.data.clone()) for part in parts]
        shards += parts
    return shards


def refresh_stage_3(module: nn.Module, zero: Any, rank: int, shards: list[Shard]) -> None:
    """Bring the written fp32 parts to disk, where they live there, and into those gathered."""
    written = {shard.key: shard.data for shard in shards}
    with torch.no_grad():
        for group, parts in _groups_of_stage_3(module, zero, rank):
            if zero._swappable_optimizer_subgroup(group):
                for part in parts:
                    part.data.copy_(written[part.key])
            zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _groups_of_stage_3(
    module: nn.Module, zero: Any, rank: int
) -> Iterator[tuple[int, list[Shard]]]:
    """Views of one group of parameters after another; if on disk, in memory until the next one."""
    zero._partition_all_parameters()
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for group, flat in enumerate(zero.fp32_partitioned_groups_flat):
        on_disk = zero._swappable_optimizer_subgroup(group)
        if on_disk:
            zero._optimizer_states_and_gradient_swap_in(group)
        tensors = {**moments_of(zero.optimizer, flat), "param": flat.detach()}
        parts = []
        for parameter in zero.fp16_groups[group]:
            _, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            # Padded to the same size on every rank.
            start = min(rank * size, parameter.ds_numel)
            length = min(size, parameter.ds_numel - start)
            name, shape = names[id(parameter)], tuple(parameter.ds_shape)
            for kind in KINDS:
                part = tensors[kind][offset : offset + length]
                parts.append(Shard(kind, name, shape, start, part))
        yield group, parts
        if on_disk:
            zero._optimizer_states_and_gradient_swap_out(group)
