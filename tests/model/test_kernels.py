"""flash-linear-attention's interface, by a stand-in on the CPU: its own kernels need a GPU."""

from functools import partial

import pytest
import recurrences
import torch

from gam_scale.model.memory.delta import delta_memory
from gam_scale.model.memory.kernels import (
    TOLERANCE,
    delta_inputs,
    largest_difference,
    packed_delta,
    packed_slot,
    slot_inputs,
)
from gam_scale.model.memory.slot import slot_memory

CPU = torch.device("cpu")


def delta_stand_in(q, k, v, g, beta, *, scale, initial_state, output_final_state, cu_seqlens):
    """What ``fla.ops.gated_delta_rule.chunk_gated_delta_rule`` computes, stretch by stretch."""
    assert scale == 1.0 and output_final_state and q.shape[0] == 1
    bounds = cu_seqlens.tolist()
    assert len(initial_state) == len(bounds) - 1
    pairs = []
    for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = [x[:, a:b] for x in (q, k, v, g, beta)]
        pairs.append(recurrences.delta(*part, initial_state[i : i + 1]))
    return torch.cat([y for y, _ in pairs], 1), torch.cat([state for _, state in pairs])


def slot_stand_in(q, k, v, s, g, *, scale, initial_state, output_final_state, cu_seqlens):
    """What ``fla.ops.gsa.chunk_gsa`` computes, token by token, with its layout of states."""
    assert scale == 1.0 and output_final_state and q.shape[0] == 1
    keys, values = initial_state  # (N, H, K, M) and (N, H, M, V)
    bounds = cu_seqlens.tolist()
    assert len(keys) == len(values) == len(bounds) - 1
    outputs, ends = [], []
    for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        K, V = keys[i], values[i]
        for t in range(a, b):
            left, share = g[0, t].exp(), s[0, t]  # (H, M)
            K = left.unsqueeze(1) * K + k[0, t].unsqueeze(2) * share.unsqueeze(1)
            V = left.unsqueeze(2) * V + share.unsqueeze(2) * v[0, t].unsqueeze(1)
            weights = torch.softmax((q[0, t].unsqueeze(1) @ K).squeeze(1), dim=-1)
            outputs.append((weights.unsqueeze(1) @ V).squeeze(1))
        ends.append((K, V))
    return torch.stack(outputs)[None], [torch.stack(end) for end in zip(*ends, strict=True)]


KERNELS = {
    "delta": (packed_delta, delta_stand_in, delta_memory, delta_inputs()),
    "slot": (packed_slot, slot_stand_in, slot_memory, slot_inputs()),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_packed_documents_reach_the_kernel_as_stretches(kind):
    packed, stand_in, portable, inputs = KERNELS[kind]
    kernel = partial(packed, stand_in)
    assert largest_difference(kernel, portable, inputs, CPU) < 1e-5  # both in float32


@pytest.mark.parametrize("kind", KERNELS)
def test_a_kernel_that_computes_something_else_is_noticed(kind):
    packed, stand_in, portable, inputs = KERNELS[kind]

    def kernel(q, *rest, layout):
        return packed(stand_in, 1.1 * q, *rest, layout=layout)

    assert largest_difference(kernel, portable, inputs, CPU) > TOLERANCE
