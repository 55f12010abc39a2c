"""flash-linear-attention's interface, by a stand-in on the CPU: its own kernels need a GPU."""

import recurrences
import torch

from gam_scale.model.memory.delta import delta_memory
from gam_scale.model.memory.kernels import TOLERANCE, largest_difference, packed_delta

CPU = torch.device("cpu")


def stand_in(q, k, v, g, beta, *, scale, initial_state, output_final_state, cu_seqlens):
    """What ``fla.ops.gated_delta_rule.chunk_gated_delta_rule`` computes, stretch by stretch."""
    assert scale == 1.0 and output_final_state and q.shape[0] == 1
    bounds = cu_seqlens.tolist()
    assert len(initial_state) == len(bounds) - 1
    pairs = []
    for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = [x[:, a:b] for x in (q, k, v, g, beta)]
        pairs.append(recurrences.delta(*part, initial_state[i : i + 1]))
    return torch.cat([y for y, _ in pairs], 1), torch.cat([state for _, state in pairs])


def test_packed_documents_reach_the_kernel_as_stretches():
    def kernel(*inputs, positions):
        return packed_delta(stand_in, *inputs, positions=positions)

    assert largest_difference(kernel, delta_memory, CPU) < 1e-5  # both in float32


def test_a_kernel_that_computes_something_else_is_noticed():
    def kernel(q, k, v, log_decay, beta, initial, positions):
        return packed_delta(stand_in, q, k, v, 2 * log_decay, beta, initial, positions)

    assert largest_difference(kernel, delta_memory, CPU) > TOLERANCE
