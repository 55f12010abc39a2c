"""Replace methods of DeepSpeed that copy needlessly or wait for the gradient's norm.

Parameters and gradients are fp32 in every precision (autocast computes in bf16), so a master copy
of the parameters and conversions of the gradients would repeat what is there. On one rank gradients
need be neither exchanged nor averaged.

A comment beside each replacement states its gain. Percentages are of a step's processor time at the
paper's size (21.6M parameters, 8 sequences of 256, one rank, one thread), measured in one process
with and without the replacement in turn. tests/parallel/test_internals.py fails if DeepSpeed's
methods are no longer those that this module was written for.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from gam_scale.parallel.strategy import skip_unless_finite
from gam_scale.parallel.world import World


class Clipping:
    """Takes the norm of a step's gradients and clips by it, without leaving the device.

    DeepSpeed asks the device whether the norm is finite, to decide whether to step. Here it is
    given the number 1 for the norm, and the optimizer's kernels decide: see
    :func:`gam_scale.parallel.strategy.skip_unless_finite`. A step thus never waits for the device,
    where DeepSpeed's waits 5 times in stages 1 and 2 and 3 times in stage 3, and the norm is taken
    in float32, not of a float64 copy.

    Attributes:
        norm: the last step's norm before clipping.
    """

    norm: Tensor

    def __init__(self, zero: Any) -> None:
        self._zero = zero

    def measure(self) -> float:
        """Take this step's norm; return the number that DeepSpeed is to take for it."""
        self.norm = _norm(self._zero)
        skip_unless_finite(self._zero.optimizer, self.norm)
        return 1.0

    def clip(self, gradients: Iterable[Tensor]) -> None:
        """Scale gradients down where the norm measured last exceeds ``clip_grad``; 0: do not."""
        if self._zero.clip_grad > 0:
            over = ((self.norm + 1e-6) / self._zero.clip_grad).clamp_(min=1.0)
            for gradient in gradients:
                gradient.mul_(1.0 / over)


def replace_methods_of_stages_1_and_2(zero: Any, world: World) -> Clipping:
    """Replace methods of ZeRO's optimizer of stages 1 and 2; masters share the parameters' memory.

    Only for an optimizer that is not offloaded. Call it once, before any step.
    """
    # Masters share the parameters' memory. Gain: 4 bytes for each parameter that a rank updates.
    for master, parts in zip(
        zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True
    ):
        master.data = parts[world.rank]
    zero._link_all_hp_params()  # views of each parameter's part in the masters
    clipping = Clipping(zero)
    _replace(zero, "scaled_global_norm", clipping.measure)
    _replace(zero, "unscale_and_clip_grads", lambda gradients, norm: clipping.clip(gradients))
    # One rank's gradients stay where autograd left them. Gain: 1.6%, a bucket (43 of 392 MB).
    if world.world_size == 1:
        reduce = "reduce_independent_p_g_buckets_and_remove_grads"
        _replace(zero, reduce, lambda parameter, group: None)
    return clipping


def replace_methods_of_stage_3(zero: Any, world: World) -> Clipping:
    """Replace methods of ZeRO's optimizer of stage 3; masters share the parts' memory.

    Only for an optimizer that is not offloaded. Call it once, before any step.
    """
    # Masters share the parts' memory; DeepSpeed means to do this by itself, but compares a device
    # with its name. Gain: 4 bytes for each parameter of this rank's part.
    for master, parts in zip(
        zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True
    ):
        master.data = parts
    # Gain: 0.7%, a quarter of what follows the backward pass, and a copy of the rank's gradients.
    _replace(zero, "flatten", joined)
    clipping, groups = Clipping(zero), zero.fp32_partitioned_groups_flat
    _replace(zero, "_get_norm_groups", lambda: [clipping.measure()])
    _replace(
        zero, "unscale_and_clip_grads", lambda group, norm: clipping.clip([groups[group].grad])
    )
    # Otherwise gradients would be joined, divided by 1, and taken apart again. Gain: 3.4%.
    if world.world_size == 1:
        _replace(zero, "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads", _whole_gradients)
    return clipping


def _replace(zero: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace a method by ``function``; fail if another DeepSpeed lacks the method."""
    assert callable(getattr(zero, name, None)), (
        f"this DeepSpeed's {type(zero).__name__} has no {name}"
    )
    setattr(zero, name, function)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return all elements in one dimension: a view if the tensors are adjacent, else a copy."""
    first = tensors[0]
    storage, end = first.untyped_storage().data_ptr(), first.storage_offset()
    for tensor in tensors:
        follows = tensor.untyped_storage().data_ptr() == storage and tensor.storage_offset() == end
        if not (follows and tensor.is_contiguous()):
            return _flatten_dense_tensors(tensors)
        end += tensor.numel()
    length = end - first.storage_offset()
    return first.detach().as_strided((length,), (1,), first.storage_offset())


def _norm(zero: Any) -> Tensor:
    """Return the averaged gradients' global L2 norm; DeepSpeed's own makes them float64 first."""
    groups: Iterable[Sequence[Tensor]] = zero.averaged_gradients.values()
    # Padding is 0 and does not count.
    norm = torch.nn.utils.get_total_norm([g.detach() for group in groups for g in group])
    if dist.get_world_size(zero.dp_process_group) == 1:
        return norm
    square = norm.square()
    dist.all_reduce(square, group=zero.dp_process_group)
    return square.sqrt()


def _whole_gradients(
    parameters: Sequence[Tensor], communication_dtype: torch.dtype
) -> list[Tensor]:
    return [cast(Tensor, parameter.grad).view(-1) for parameter in parameters]
