"""Stand-ins on a CPU for kernels of flash-linear-attention and mamba_ssm: float64 recurrences.

They have the packages' signatures. The tensors that they keep for the backward pass have the
packages' shapes, but not their values.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import recurrences
import torch
from torch import Tensor

from gam_scale.kernels import channel_delta, delta, mamba, mamba2, slot

CALLS: list[str] = []
"""Names of the stand-ins that were called, in order."""


def delta_forward(
    q,
    k,
    v,
    g,
    beta,
    scale,
    initial_state,
    output_final_state,
    state_v_first=False,
    cu_seqlens=None,
    cp_context=None,
    chunk_indices=None,
    use_gate_in_kernel=False,
    A_log=None,
    dt_bias=None,
    chunk_size=64,
):
    """``fla.ops.gated_delta_rule.chunk.chunk_gated_delta_rule_fwd``."""
    CALLS.append("delta_forward")
    assert scale == 1.0 and output_final_state
    _check(cu_seqlens, chunk_indices, [q, k, v, g, beta, initial_state])
    assert g.dtype == beta.dtype == initial_state.dtype == torch.float32
    y, final = _delta(cu_seqlens, *_double(q, k, v, g, beta, initial_state))
    solved = k.new_zeros((*k.shape[:3], chunk_size))
    return g.clone(), y.to(v.dtype), solved, final.float(), initial_state, None


def delta_backward(
    q,
    k,
    v,
    g,
    beta,
    A,
    scale,
    initial_state,
    do,
    dht,
    state_v_first=False,
    cu_seqlens=None,
    cp_context=None,
    chunk_indices=None,
    use_gate_in_kernel=False,
    g_input=None,
    A_log=None,
    dt_bias=None,
    chunk_size=64,
):
    """``fla.ops.gated_delta_rule.chunk.chunk_gated_delta_rule_bwd``."""
    CALLS.append("delta_backward")
    _check(cu_seqlens, chunk_indices, [q, k, v, g, beta, A, initial_state, do, dht])
    leaves = (q, k, v, g, beta, initial_state)
    dq, dk, dv, dg, dbeta, dstate = _gradients(lambda *x: _delta(cu_seqlens, *x), leaves, (do, dht))
    return dq, dk, dv, dbeta, dg, dstate, None, None


def channel_forward(
    q,
    k,
    v,
    g,
    beta,
    scale,
    initial_state,
    output_final_state,
    state_v_first=False,
    cu_seqlens=None,
    cu_seqlens_cpu=None,
    chunk_indices=None,
    chunk_size=64,
    *rest,
):
    """``fla.ops.kda.chunk_fwd.chunk_kda_fwd``."""
    CALLS.append("channel_forward")
    assert scale == 1.0 and output_final_state and not rest
    _check(cu_seqlens, chunk_indices, [q, k, v, g, beta, initial_state])
    assert g.dtype == initial_state.dtype == torch.float32
    y, final = _channel(cu_seqlens, *_double(q, k, v, g, beta, initial_state))
    pairs = k.new_zeros((*k.shape[:3], chunk_size))
    kept = (g.clone(), pairs, pairs.clone(), *[None] * 6)
    return y.to(v.dtype), final.float(), *kept, initial_state


def channel_backward(
    q,
    k,
    v,
    beta,
    Aqk,
    Akk,
    scale,
    initial_state,
    do,
    dht,
    g=None,
    g_org=None,
    state_v_first=False,
    cu_seqlens=None,
    chunk_indices=None,
    chunk_size=64,
    *rest,
):
    """``fla.ops.kda.chunk_bwd.chunk_kda_bwd``."""
    CALLS.append("channel_backward")
    _check(cu_seqlens, chunk_indices, [q, k, v, g, beta, Aqk, Akk, initial_state, do, dht])
    leaves = (q, k, v, g, beta, initial_state)
    grads = _gradients(lambda *x: _channel(cu_seqlens, *x), leaves, (do, dht))
    dq, dk, dv, dg, dbeta, dstate = grads
    return dq, dk, dv, dbeta, dg, dstate, None, None


def gated_forward(q, k, v, g, b, w_gate, **rest):
    """``fla.ops.gdn2.chunk_fwd.chunk_gdn2_fwd``."""
    assert q.dtype == b.dtype == w_gate.dtype
    return channel_forward(q, k, v, g, torch.cat([b, w_gate], dim=-1), **rest)


def gated_backward(q, k, v, b, w_gate, **rest):
    """``fla.ops.gdn2.chunk_bwd.chunk_gdn2_bwd``."""
    found = channel_backward(q, k, v, torch.cat([b, w_gate], dim=-1), **rest)
    dq, dk, dv, dgates, dg, dstate, *_ = found
    return dq, dk, dv, *dgates.split([b.shape[-1], w_gate.shape[-1]], -1), dg, dstate, None, None


def slot_forward(
    q,
    k,
    v,
    s,
    g,
    initial_state=None,
    output_final_state=False,
    scale=1.0,
    cu_seqlens=None,
    chunk_size=64,
    chunk_indices=None,
):
    """``fla.ops.gsa.chunk_fwd.chunk_gsa_fwd``."""
    CALLS.append("slot_forward")
    assert scale == 1.0 and output_final_state
    _check(cu_seqlens, chunk_indices, [q, k, v, s, g, *initial_state])
    assert q.dtype == k.dtype == v.dtype == s.dtype and g.dtype == torch.float32
    y, keys, values = _slot(cu_seqlens, *_double(q, k, v, s, g, *initial_state))
    scores, pairs = torch.zeros_like(s), q.new_zeros((*q.shape[:3], chunk_size)).float()
    weights = torch.zeros_like(s, dtype=torch.float32)
    return None, keys.float(), scores, weights, pairs, None, values.float(), y.to(v.dtype)


def slot_backward(
    q,
    k,
    v,
    s,
    g,
    ok,
    p,
    A,
    h,
    initial_state,
    scale,
    do,
    dht,
    cu_seqlens=None,
    chunk_size=64,
    chunk_indices=None,
):
    """``fla.ops.gsa.chunk_bwd.chunk_gsa_bwd``."""
    CALLS.append("slot_backward")
    _check(cu_seqlens, chunk_indices, [q, k, v, s, g, ok, p, A, do, *initial_state, *dht])
    leaves = (q, k, v, s, g, *initial_state)
    return _gradients(lambda *x: _slot(cu_seqlens, *x), leaves, (do, *dht))


def mamba_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """``selective_scan_cuda.fwd`` of mamba_ssm: time last, float32, a state per 2,048 tokens."""
    CALLS.append("mamba_forward")
    assert D is z is delta_bias is None and not delta_softplus
    assert all(x.is_contiguous() and x.dtype == torch.float32 for x in (u, delta, A, B, C))
    rows, width, length = u.shape
    assert B.shape == C.shape == (rows, 1, A.shape[1], length)
    states = u.new_zeros((rows, width, -(-length // 2048), 2 * A.shape[1]))
    return _mamba(*_double(u, delta, A, B, C)).float(), states


def mamba_backward(
    u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z
):
    """``selective_scan_cuda.bwd`` of mamba_ssm."""
    CALLS.append("mamba_backward")
    assert dout.is_contiguous() and x.shape[-1] == 2 * A.shape[1]
    grads = _gradients(lambda *leaves: (_mamba(*leaves),), (u, delta, A, B, C), (dout,))
    return *grads, None, None


def _mamba(u, delta, A, B, C) -> Tensor:
    h, outputs = u.new_zeros((*u.shape[:2], A.shape[1])), []
    for t in range(u.shape[2]):
        decay = torch.exp(delta[:, :, t, None] * A)
        h = decay * h + (delta[:, :, t] * u[:, :, t]).unsqueeze(2) * B[:, :, :, t]
        outputs.append((h * C[:, :, :, t]).sum(-1))
    return torch.stack(outputs, 2)


def mamba2_forward(x, dt, A, B, C, chunk_size, initial_states, seq_idx):
    """``_mamba_chunk_scan_combined_fwd`` of mamba_ssm, with None for the results not used."""
    CALLS.append("mamba2_forward")
    assert all(v.is_contiguous() for v in (x, dt, A, B, C, initial_states)) and chunk_size == 256
    assert x.dtype == B.dtype == C.dtype and dt.dtype == A.dtype == torch.float32
    y, final = _ssd(seq_idx, *_double(x, dt, A, B, C, initial_states))
    return y.to(x.dtype), None, None, None, None, final.float()


def mamba2_backward(dout, x, dt, A, B, C, out, chunk_size, initial_states, dfinal_states, seq_idx):
    """``_mamba_chunk_scan_combined_bwd`` of mamba_ssm."""
    CALLS.append("mamba2_backward")
    assert all(v.is_contiguous() for v in (dout, out, dfinal_states)) and out.shape == x.shape
    leaves = (x, dt, A, B, C, initial_states)
    *grads, initial = _gradients(lambda *v: _ssd(seq_idx, *v), leaves, (dout, dfinal_states))
    return *grads, None, None, None, initial


def _ssd(documents: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    positions = None
    if documents is not None:
        before = torch.nn.functional.pad(documents[:, :-1], (1, 0))
        positions = (documents == before).long()
    return recurrences.mamba2(*inputs, positions)


def install(patch: pytest.MonkeyPatch) -> None:
    """Make the operators call the stand-ins until ``patch`` is undone."""
    CALLS.clear()
    patch.setattr(delta, "functions", lambda: (delta_forward, delta_backward))
    channel = (channel_forward, channel_backward, gated_forward, gated_backward)
    patch.setattr(channel_delta, "functions", lambda: channel_delta.Functions(*channel))
    functions = slot.Functions(
        slot_forward, slot_backward, lambda g, **_: g, lambda cut: nullcontext()
    )
    patch.setattr(slot, "functions", lambda: functions)
    patch.setattr(mamba, "functions", lambda: (mamba_forward, mamba_backward))
    patch.setattr(mamba2, "functions", lambda: (mamba2_forward, mamba2_backward))


def _check(ends: Tensor, chunks: Tensor, tensors: list[Tensor]) -> None:
    """Assert what the kernels rely on: contiguous tensors, and the places of 64-token chunks."""
    assert all(x.is_contiguous() for x in tensors)
    count = 0
    for stretch, length in enumerate(ends.diff().tolist()):
        for place in range(-(-length // 64)):
            assert chunks[count].tolist() == [stretch, place]
            count += 1
    assert count == len(chunks)


def _double(*tensors: Tensor) -> list[Tensor]:
    return [x.double() for x in tensors]


def _delta(ends: Tensor, q, k, v, g, beta, states) -> tuple[Tensor, Tensor]:
    return _stretched(recurrences.delta, ends, q, k, v, g, beta, states)


def _channel(ends: Tensor, q, k, v, g, gates, states) -> tuple[Tensor, Tensor]:
    return _stretched(recurrences.erasing_delta, ends, q, k, v, g, gates, states)


def _stretched(recurrence, ends: Tensor, q, k, v, g, beta, states) -> tuple[Tensor, Tensor]:
    bounds, pairs = ends.tolist(), []
    assert len(states) == len(bounds) - 1
    for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        part = [x[:, a:b] for x in (q, k, v, g, beta)]
        pairs.append(recurrence(*part, states[i : i + 1]))
    return torch.cat([y for y, _ in pairs], 1), torch.cat([state for _, state in pairs])


def _slot(ends: Tensor, q, k, v, s, g, keys, values) -> tuple[Tensor, Tensor, Tensor]:
    """Run the slots; the states of keys are (N, H, K, M), those of values (N, H, M, V)."""
    bounds, outputs, last = ends.tolist(), [], []
    assert len(keys) == len(values) == len(bounds) - 1
    for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)):
        K, V = keys[i], values[i]
        for t in range(a, b):
            left, share = g[0, t].exp(), s[0, t]  # (H, M)
            K = left.unsqueeze(1) * K + k[0, t].unsqueeze(2) * share.unsqueeze(1)
            V = left.unsqueeze(2) * V + share.unsqueeze(2) * v[0, t].unsqueeze(1)
            weights = torch.softmax((q[0, t].unsqueeze(1) @ K).squeeze(1), dim=-1)
            outputs.append((weights.unsqueeze(1) @ V).squeeze(1))
        last.append((K, V))
    return torch.stack(outputs)[None], *(torch.stack(x) for x in zip(*last, strict=True))


def _gradients(
    function: Callable[..., tuple[Tensor, ...]], leaves: tuple[Tensor, ...], grads: tuple
) -> list[Tensor]:
    def run() -> tuple[Tensor, ...]:
        copies = [x.double().requires_grad_() for x in leaves]
        return torch.autograd.grad(function(*copies), copies, _double(*grads))

    # Autograd is off in the thread that runs an operator, so another thread does this.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(run).result()
    return [grad.to(x.dtype) for grad, x in zip(found, leaves, strict=True)]
