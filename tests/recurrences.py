"""The written memories, computed one token at a time: the reference for their chunked forms."""

import torch
from torch import Tensor


def _at_start(state: Tensor, new_state: Tensor | float, positions: Tensor | None, t: int) -> Tensor:
    """Return ``state``, with ``new_state`` in the rows where token t starts a document."""
    if positions is None:
        return state
    starts = (positions[:, t] == 0).view(-1, *[1] * (state.dim() - 1))
    return torch.where(starts, new_state, state)


def slot(q, k, v, log_decay, state, bank, positions=None):
    """Run slots whose states are K and V side by side, (B, H, M, K + V)."""
    width, ys = q.shape[-1], []
    for t in range(q.shape[1]):
        state = _at_start(state, bank, positions, t)
        a = log_decay[:, t].exp().unsqueeze(-1)
        state = a * state + (1 - a) * torch.cat([k[:, t], v[:, t]], -1).unsqueeze(-2)
        scores = torch.einsum("bhmk,bhk->bhm", state[..., :width], q[:, t])
        ys.append(torch.einsum("bhm,bhmv->bhv", scores.softmax(-1), state[..., width:]))
    return torch.stack(ys, 1), state


def delta(q, k, v, log_decay, beta, state, positions=None):
    """Run the gated delta rule, with a state S (B, H, K, V)."""
    ys = []
    for t in range(q.shape[1]):
        state = _at_start(state, 0.0, positions, t)
        a, b = log_decay[:, t].exp()[..., None, None], beta[:, t][..., None]
        old = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = a * (state - torch.einsum("bhk,bhv->bhkv", k[:, t], b * old))
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], b * v[:, t])
        ys.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(ys, 1), state


def erasing_delta(q, k, v, log_decay, gates, state, positions=None):
    """Run the delta rule with decays per channel (B, T, H, K) and a state S (B, H, K, V).

    ``gates``: erase and write gates side by side, (B, T, H, K + V), or one strength (B, T, H).
    """
    if gates.dim() < k.dim():
        gates = gates.unsqueeze(-1).expand(*k.shape[:-1], k.shape[-1] + v.shape[-1])
    erase, write = gates.split([k.shape[-1], v.shape[-1]], -1)
    ys = []
    for t in range(q.shape[1]):
        state = _at_start(state, 0.0, positions, t) * log_decay[:, t].exp().unsqueeze(-1)
        old = torch.einsum("bhkv,bhk->bhv", state, erase[:, t] * k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], write[:, t] * v[:, t] - old)
        ys.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(ys, 1), state


def phase(q, k, v, log_decay, state, positions=None):
    """Run the phase memory, with a complex state S (B, H, V, K).

    Arguments and results have complex numbers as [Re, Im] side by side, and S transposed.
    """
    q, k, v, state = map(_to_complex, (q, k, v, state))
    state, ys = state.mT, []
    for t in range(q.shape[1]):
        state = _at_start(state, 0.0, positions, t)
        write = torch.einsum("bhv,bhk->bhvk", v[:, t], k[:, t].conj())
        state = log_decay[:, t].exp()[..., None, None] * state + write
        ys.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return _to_real(torch.stack(ys, 1)), _to_real(state.mT)


def scan(x, log_decay, state, positions=None):
    """Run the gated scan, with a state h (B, D)."""
    ys = []
    for t in range(x.shape[1]):
        state = _at_start(state, 0.0, positions, t)
        a = log_decay[:, t].exp()
        state = a * state + (1 - a) * x[:, t]
        ys.append(state)
    return torch.stack(ys, 1), state


def mamba2(x, dt, A, B, C, state, positions=None):
    """Run Mamba-2 (arXiv 2405.21060, equation 2): h (B, H, P, N), B and C of groups of heads."""
    each, ys = x.shape[2] // B.shape[2], []
    for t in range(x.shape[1]):
        state = _at_start(state, 0.0, positions, t)
        b, c = (v[:, t].repeat_interleave(each, 1) for v in (B, C))
        write = torch.einsum("bhp,bhn->bhpn", dt[:, t, :, None] * x[:, t], b)
        state = torch.exp(dt[:, t] * A)[..., None, None] * state + write
        ys.append(torch.einsum("bhpn,bhn->bhp", state, c))
    return torch.stack(ys, 1), state


def _to_complex(x: Tensor) -> Tensor:
    return torch.complex(*(part.contiguous() for part in x.chunk(2, -1)))


def _to_real(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], -1)
