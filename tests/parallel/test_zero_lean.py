"""Copies that DeepSpeed is spared: of fp32 parameters, and of tensors that are adjacent."""

import torch
from engines import BATCH, Trial
from ranks import run_ranks

from gam_scale.parallel.zero_lean import joined


def test_joined_is_a_view_where_tensors_lie_one_behind_another():
    flat = torch.arange(12.0)
    parts = [flat[2:4], flat[4:4], flat[4:10].view(2, 3)]
    assert joined(parts).data_ptr() == flat[2:].data_ptr()
    assert joined(parts).tolist() == list(range(2, 10))
    for apart in ([flat[2:4], flat[5:7]], [flat[4:6], flat[2:4]], [flat[0:1], flat.clone()[1:2]]):
        copy = joined(apart)
        assert copy.tolist() == torch.cat(apart).tolist()
        assert copy.untyped_storage().data_ptr() != flat.untyped_storage().data_ptr()
    turned = flat[6:12].view(2, 3).T  # adjacent, but in another order
    assert joined([flat[:6], turned]).tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 7, 10, 8, 11]


def masters_of_their_own(world, sets):
    """Return, by stage, the elements of fp32 masters that do not share the parameters' memory."""
    found = {}
    for stage in (1, 2, 3):
        trial = Trial(world, sets, f"zero{stage}", BATCH)
        trial.step(0)
        zero = trial.strategy.zero
        if stage == 3:
            pairs = zip(
                zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat, strict=True
            )
        else:
            parts = [parts[world.rank] for parts in zero.parallel_partitioned_bit16_groups]
            pairs = zip(zero.single_partition_of_fp32_groups, parts, strict=True)
        found[stage] = sum(a.numel() for a, b in pairs if a.data_ptr() != b.data_ptr())
    return found


def test_fp32_parameters_are_their_own_masters(prepared_set):
    for found in run_ranks(masters_of_their_own, 2, sets=str(prepared_set)):
        assert found == {"1": 0, "2": 0, "3": 0}
