"""Where ZeRO keeps each parameter's part and states, as read from DeepSpeed's internals."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.errors import UserError
from gam_scale.parallel.optimizer import GroupedOptimizer
from gam_scale.parallel.whole import Piece
from gam_scale.parallel.world import World

Flat = tuple[Tensor, list[Piece]]
"""A tensor that ZeRO has its optimizer step as one parameter, and the pieces that lie in it."""


def flats(module: nn.Module, zero: Any, stage: int, rank: int) -> Iterator[Flat]:
    """Yield each tensor that this rank's optimizer steps, and the pieces of parameters in it.

    Every rank has a piece of every parameter, if only an empty one.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    if stage == 3:
        for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
            yield flat, [_piece_of_stage_3(zero, flat, p, names[id(p)], rank) for p in group]
        return
    for flat, group in zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True):
        yield flat, [_piece_of_stages_1_and_2(flat, p, names[id(p)]) for p in group]


def _piece_of_stages_1_and_2(flat: Tensor, parameter: Any, name: str) -> Piece:
    part, shape = parameter._hp_mapping, tuple(parameter.shape)
    if part is None:  # another rank's
        return Piece(name, shape, flat, 0, 0, 0)
    where = part.hp_fragment_address
    return Piece(name, shape, flat, where.start, part.lp_fragment_address.start, where.numel)


def _piece_of_stage_3(zero: Any, flat: Tensor, parameter: Any, name: str, rank: int) -> Piece:
    _, offset, size = zero.grad_position[zero.get_param_id(parameter)]
    start = min(rank * size, parameter.ds_numel)
    length = min(size, parameter.ds_numel - start)  # padded to the same size on every rank
    return Piece(name, tuple(parameter.ds_shape), flat, offset, start, length)


def of_stages_1_and_2(module: nn.Module, zero: Any, world: World) -> list[Shard]:
    """Return whole parameters, as on every rank, and states of this rank's part of each flat."""
    shards = [
        Shard.whole(PARAM, name, parameter.detach(), world.rank, world.world_size)
        for name, parameter in module.named_parameters()
    ]
    for flat, pieces in flats(module, zero, 1, world.rank):
        shards += _parts(_states_of_flat(zero.optimizer, flat, pieces), pieces, world)
    return shards + _owned_shards(zero.optimizer)


def refresh_stages_1_and_2(module: nn.Module, zero: Any, world: World, shards: list[Shard]) -> None:
    """Copy the written parameters into the fp32 partition that the optimizer steps."""
    parameters: Iterable[Any] = module.parameters()
    for parameter in parameters:
        if parameter._hp_mapping is not None:
            parameter._hp_mapping.update_hp()
    _set_counts(zero.optimizer, flats(module, zero, 1, world.rank), shards)


def of_stage_3(module: nn.Module, zero: Any, world: World) -> list[Shard]:
    """Return this rank's part of every parameter and its states; last ranks' are short or empty."""
    shards = []
    for group, parts in _groups_of_stage_3(module, zero, world):
        if zero._swappable_optimizer_subgroup(group):
            parts = [replace(part, data=part.data.clone()) for part in parts]
        shards += parts
    return shards + _owned_shards(zero.optimizer)


def refresh_stage_3(module: nn.Module, zero: Any, world: World, shards: list[Shard]) -> None:
    """Bring the written fp32 parts to disk, if kept there, and into parameters that stay whole."""
    written = {shard.key: shard.data for shard in shards}
    with torch.no_grad():
        for group, parts in _groups_of_stage_3(module, zero, world):
            if zero._swappable_optimizer_subgroup(group):
                for part in parts:
                    part.data.copy_(written[part.key])
            zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
    _set_counts(zero.optimizer, flats(module, zero, 3, world.rank), shards)


def _groups_of_stage_3(
    module: nn.Module, zero: Any, world: World
) -> Iterator[tuple[int, list[Shard]]]:
    """Yield each group's number and views of its parts, in memory until the next if on disk."""
    zero._partition_all_parameters()
    for group, (flat, pieces) in enumerate(flats(module, zero, 3, world.rank)):
        on_disk = zero._swappable_optimizer_subgroup(group)
        if on_disk:
            zero._optimizer_states_and_gradient_swap_in(group)
        tensors = {PARAM: flat.detach(), **_states_of_flat(zero.optimizer, flat, pieces)}
        yield group, _parts(tensors, pieces, world)
        if on_disk:
            zero._optimizer_states_and_gradient_swap_out(group)


def _states_of_flat(
    optimizer: GroupedOptimizer, flat: Tensor, pieces: list[Piece]
) -> dict[str, Tensor]:
    """Return a flat's states; its parameters are all of one group, and so of one algorithm."""
    return optimizer.local_states(flat, optimizer.algorithms()[pieces[0].name])


def _parts(tensors: dict[str, Tensor], pieces: list[Piece], world: World) -> list[Shard]:
    """Return each piece's part of tensors of the flat's shape, and a copy of each count."""
    shards = []
    for piece in pieces:
        for kind, tensor in tensors.items():
            if tensor.dim():
                data = tensor[piece.offset_in_tensor : piece.offset_in_tensor + piece.length]
                shards.append(
                    Shard(kind, piece.name, piece.shape, (piece.offset_in_parameter,), data)
                )
            else:
                place = world.rank, world.world_size
                shards.append(Shard.whole(kind, piece.name, tensor.clone(), *place))
    return shards


def _owned_shards(optimizer: GroupedOptimizer) -> list[Shard]:
    return [
        Shard.whole(kind, name, tensor)
        for name, kept in optimizer.owned_states().items()
        for kind, tensor in kept.items()
    ]


def _set_counts(optimizer: GroupedOptimizer, parts: Iterable[Flat], shards: list[Shard]) -> None:
    """Set each flat's counts to those written for its parameters, which must agree.

    Raises:
        UserError: they do not agree.
    """
    written = {shard.key: shard.data for shard in shards if not shard.shape}
    for flat, pieces in parts:
        for kind, value in optimizer.state[flat].items():
            if value.dim():
                continue
            first, *others = [written[f"{kind}.{piece.name}"] for piece in pieces]
            if not all(torch.equal(first, other) for other in others):
                raise UserError(
                    f"parameters have different values of {kind}, which ZeRO keeps once for all of "
                    "a group; expected parallel.engine fsdp or torch, or zero_stage 0"
                )
            value.copy_(first)
