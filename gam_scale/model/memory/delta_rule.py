"""The gated delta rule: a matrix of associations in which a new value replaces a key's old one."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.kernels.channel_delta import fla_channel_delta
from gam_scale.kernels.delta import fla_delta
from gam_scale.kernels.products import Precision, product
from gam_scale.model.context import Context
from gam_scale.model.layout import Layout
from gam_scale.model.memory.pairs import ChannelDecays, HeadDecays
from gam_scale.model.memory.recurrence import Chunks, Fold, chunk_states, state_of_rank
from gam_scale.model.memory.solve import solve_unit_lower

CHUNK = 64


def delta_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    layout: Layout,
    context: Context | None = None,
    precision: Precision = "ieee",
) -> tuple[Tensor, Tensor]:
    """Read a matrix of associations per head, each token after writing to it.

        S_t = (I - k_t p_tᵀ) a_t S_{t-1} + k_t w_tᵀ        y_t = S_tᵀ q_t

    with a_t = exp(log_decay_t), one factor for the state or one for each of its K rows. A writing
    strength b_t, with p_t = b_t k_t and w_t = b_t v_t, makes this the gated delta rule (arXiv
    2412.06464) or, with a decay for each row, Kimi's (arXiv 2510.26692). An erase gate e_t of K
    channels and a write gate g_t of V channels, with p_t = e_t * k_t and w_t = g_t * v_t, make
    this GDN-2's (arXiv 2605.22791), which contains both.

    In a chunk that starts from state S, with c_t the decay since its start, S_t = c_t S + sum_s
    (c_t / c_s) k_s u_sᵀ. The values u that are really written solve a triangular system (the WY
    form of arXiv 2406.06484):

        u_t + sum_{s<t} (p_t (c_t / c_s) k_s) u_s = w_t - Sᵀ (c_t p_t)

    The solution is affine in S, so a chunk is a :class:`Fold` whose decay is a matrix.

    Args:
        q: (B, T, H, K) queries, scaled.
        k: (B, T, H, K) keys of length 1 at most.
        v: (B, T, H, V) values.
        log_decay: (B, T, H), at most 0; or (B, T, H, K), from
            :data:`~gam_scale.model.memory.pairs.MIN_LOG_DECAY` to 0.
        beta: (B, T, H) strengths from 0 to 1, or to 2 where a write may turn round what it finds
            under its key; or (B, T, H, K + V) erase and write gates.
        initial: (B, H, K, V) state before the first token.
        layout: the tokens' layout; a document starts from zero.
        context: the ranks over which the sequence is cut.
        precision: precision of float32 products.

    Returns:
        (B, T, H, V), and the state after the last token (B, H, K, V).
    """
    matmul = partial(product, precision=precision)
    chunks = Chunks(layout, CHUNK)
    q, k, v, log_decay, beta = map(chunks.cut, (q, k, v, log_decay, beta))
    erased, strength = k, beta.unsqueeze(-1)
    if beta.dim() == k.dim():
        erase, write = beta.split([k.shape[-1], v.shape[-1]], dim=-1)
        erased, v, strength = erase * k, write * v, beta.new_ones(())
    by_channel = log_decay.dim() == k.dim()
    decays = (ChannelDecays if by_channel else HeadDecays)(log_decay, k, chunks, precision)

    system = decays.pairs(erased, strength).tril(-1)  # its unit diagonal is implied
    right = torch.cat([strength * v, strength * decays.since_start * erased], dim=-1)
    # u is written - forgotten S.
    solved = solve_unit_lower(system, right)
    written, forgotten = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    kept = (decays.to_end * k).mT  # (B, H, N, K, C)
    unit = torch.eye(k.shape[-1], device=k.device, dtype=k.dtype)
    decay = decays.since_start[..., -1:, :] * unit - matmul(kept, forgotten)
    folds = Fold(decay, matmul(kept, written))
    states, final = chunk_states(folds, initial, context, precision)  # (B, H, N, K, V)
    values = written - matmul(forgotten, states)
    y = matmul(decays.pairs(q), values) + matmul(decays.since_start * q, states)
    return chunks.join(y), final


def delta_in_kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    initial: Tensor,
    layout: Layout,
    context: Context | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`delta_memory` in flash-linear-attention's kernels.

    q, k and v come in the dtype of products. Over several ranks, a first pass gives the fold of
    this rank's tokens: it starts from a unit matrix beside zeros, with zeros before each value.
    """
    width, where = k.shape[-1], (layout.stretches.starts_document, layout.ends, layout.ends_host)
    kernel = fla_delta
    if log_decay.dim() == k.dim() or beta.dim() == k.dim():
        kernel = fla_channel_delta
        if log_decay.dim() < k.dim():
            log_decay = log_decay.unsqueeze(-1).expand(k.shape)
    if context is not None:
        unit = torch.eye(width, device=k.device, dtype=initial.dtype)
        unit = unit.expand(*initial.shape[:2], -1, -1)
        nothing, gates = torch.cat([unit, torch.zeros_like(initial)], dim=-1), beta
        if beta.dim() == k.dim():
            erase, write = beta.split([width, v.shape[-1]], dim=-1)
            gates = torch.cat([erase, F.pad(write, (width, 0))], dim=-1)
        _, fold = kernel(k, k, F.pad(v, (width, 0)), log_decay, gates, nothing, *where)
        initial = state_of_rank(fold, initial, context)
    return kernel(q, k, v, log_decay, beta, initial, *where)
