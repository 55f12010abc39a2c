"""Phase-Associative Memory: a complex matrix of associations (arXiv 2604.05030)."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gam_scale.kernels.products import Precision, product
from gam_scale.model.context import Context
from gam_scale.model.gam import HeadLayer
from gam_scale.model.layout import Layout
from gam_scale.model.memory.base import Memory
from gam_scale.model.memory.gate import DecayGate
from gam_scale.model.memory.heads import HeadMemory
from gam_scale.model.memory.pairs import pair_decays
from gam_scale.model.memory.recurrence import Chunks, Fold, chunk_states
from gam_scale.model.norm import unit_length
from gam_scale.model.parts import MIXERS
from gam_scale.model.shape import Shape

CHUNK = 64


@MIXERS.register
@dataclass(frozen=True)
class PhaseLayer(HeadLayer):
    """A complex matrix of associations."""

    kind: Literal["phase"] = "phase"

    gpu_block_kind: ClassVar[str] = "phase"
    of_pairs: ClassVar[bool] = True

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return PhaseMemory(self, shape)


class PhaseMemory(HeadMemory):
    """A complex matrix of associations per head; see :func:`phase_memory`.

    A head's d / H channels are the real and imaginary parts of d / 2H complex ones; rotary
    positions turn exactly these pairs, so they multiply a complex number by a phase.
    """

    def __init__(self, layer: PhaseLayer, shape: Shape) -> None:
        super().__init__(layer.heads(shape), shape)
        self.gate = DecayGate(shape.d_model, self.n_heads, layer.horizons(shape))

    def initial(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a state of zeros, (B, H, d / 2H, d / H)."""
        shape = (batch_size, self.n_heads, self.head_size // 2, self.head_size)
        return torch.zeros(shape, device=device, dtype=dtype)

    def norm_heads(self, x: Tensor) -> Tensor:
        """Scale to length 1; the read-out is brought to unit size anyway."""
        return unit_length(x)

    def gates(self, h: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`HeadMemory.gates`: log decays."""
        return (self.gate(h).squeeze(-2),)

    def associate(
        self,
        gates: tuple[Tensor, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor,
        layout: Layout,
        context: Context | None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`HeadMemory.associate`."""
        (log_decay,) = gates
        return phase_memory(q, k, v, log_decay, state, layout, context, self.fp32_matmul)

    def flops_per_token(self) -> float:
        """Count projections and, per real number of the state, a decay, write (4), read (4)."""
        gates = 2.0 * self.gate.strength.weight.numel()
        state = self.n_heads * self.head_size**2 / 2
        return self.around_flops() + gates + 9.0 * state


def phase_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    layout: Layout,
    context: Context | None = None,
    precision: Precision = "ieee",
) -> tuple[Tensor, Tensor]:
    """Read a complex matrix of associations per head, each token after writing to it.

        S_t = a_t S_{t-1} + v_t k_t*        y_t = S_t q_t

    with a_t = exp(log_decay_t). The arithmetic is real, since every device's matmuls and
    torch.compile support that: complex vectors come as real and imaginary parts side by side, and
    the state as [Re Sᵀ, Im Sᵀ].

    Args:
        q: (B, T, H, 2 K) queries, scaled.
        k: (B, T, H, 2 K) keys.
        v: (B, T, H, 2 V) values.
        log_decay: (B, T, H), at most 0.
        initial: (B, H, K, 2 V) state before the first token.
        layout: the tokens' layout; a document starts from zero.
        context: the ranks over which the sequence is cut.
        precision: precision of float32 products.

    Returns:
        (B, T, H, 2 V), and the state after the last token (B, H, K, 2 V).
    """
    matmul = partial(product, precision=precision)
    chunks = Chunks(layout, CHUNK)
    q, k, v, log_decay = map(chunks.cut, (q, k, v, log_decay))
    left, since_start, to_end = pair_decays(log_decay, chunks)

    # v k* = v (Re k) - i v (Im k): two real keys a token, with the values v and -i v.
    values = torch.cat([v, _times_i(v, -1)], dim=-2)  # (B, H, N, 2 C, 2 V)
    kept = torch.cat([part * to_end.unsqueeze(-1) for part in k.chunk(2, dim=-1)], dim=-2)
    decay = since_start[..., -1:, None].expand(*kept.shape[:3], kept.shape[-1], 1)
    states, final = chunk_states(Fold(decay, matmul(kept.mT, values)), initial, context)

    # k* q = (q k) + i (q (-i k)) with real products: the factors of v and, negated, of -i v.
    pairs = [matmul(q, k.mT) * left, matmul(q, _times_i(k, 1).mT) * -left]
    from_here = matmul(torch.cat(pairs, dim=-1), values)
    both = torch.cat([states, _times_i(states, 1)], dim=-2)  # q S = Re q S + Im q i S
    return chunks.join(from_here + since_start.unsqueeze(-1) * matmul(q, both)), final


def _times_i(x: Tensor, sign: int) -> Tensor:
    """``i x``, or ``-i x`` with sign -1, for real and imaginary parts side by side."""
    real, imaginary = x.chunk(2, dim=-1)
    return torch.cat([-sign * imaginary, sign * real], dim=-1)
