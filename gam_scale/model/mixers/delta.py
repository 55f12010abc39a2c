"""A matrix of associations that the gated delta rule writes: a key's new value replaces its old."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.kernels.choice import Function, Trial
from gam_scale.kernels.delta import fla_delta
from gam_scale.kernels.products import Precision, product
from gam_scale.model.context import Context
from gam_scale.model.gam import HeadLayer
from gam_scale.model.layout import Layout
from gam_scale.model.memory.base import Memory
from gam_scale.model.memory.gate import DecayGate, Gate
from gam_scale.model.memory.heads import HeadMemory
from gam_scale.model.memory.pairs import pair_decays
from gam_scale.model.memory.recurrence import Chunks, Fold, chunk_states, state_of_rank
from gam_scale.model.memory.solve import solve_unit_lower
from gam_scale.model.norm import unit_length
from gam_scale.model.parts import MIXERS
from gam_scale.model.shape import Shape
from gam_scale.model.trial import LENGTH, ROWS, trial_layout, trial_numbers

CHUNK = 64


@MIXERS.register
@dataclass(frozen=True)
class DeltaLayer(HeadLayer):
    """The gated delta rule."""

    kind: Literal["delta"] = "delta"

    measured_as: ClassVar[str] = "delta"
    kernel: ClassVar[str] = "fla"

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return DeltaMemory(self, shape)


class DeltaMemory(HeadMemory):
    """A matrix of associations per head, corrected by each token; see :func:`delta_memory`."""

    def __init__(self, layer: DeltaLayer, shape: Shape) -> None:
        super().__init__(layer.heads(shape), shape)
        self.gate = DecayGate(shape.d_model, self.n_heads, layer.horizons(shape))
        self.beta = Gate(shape.d_model, self.n_heads)

    def initial(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Nothing: zeros (B, H, K, V), K = V = d / H."""
        shape = (batch_size, self.n_heads, self.head_size, self.head_size)
        return torch.zeros(shape, device=device, dtype=dtype)

    def normed(self, x: Tensor) -> Tensor:
        """Of length 1: a stronger key would overshoot where it is written twice."""
        return unit_length(x)

    def associate(
        self,
        h: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor,
        layout: Layout,
        context: Context | None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`HeadMemory.associate`."""
        log_decay = self.gate(h).squeeze(-2)
        beta = torch.sigmoid(self.beta(h))
        arguments = (q, k, v, log_decay, beta, state, layout, context)
        if self.implementation == "fla":
            return delta_in_kernels(*arguments)
        return delta_memory(*arguments, self.fp32_matmul)

    def trials(self, context: int) -> list[Trial]:
        """See :meth:`HasKernels.trials`; values are wider where folds are made for other ranks."""
        widths = [self.head_size] + [2 * self.head_size] * (context > 1)
        return [self._trial(width) for width in widths]

    def _trial(self, width: int) -> Trial:
        draw, heads = trial_numbers(), (ROWS, LENGTH, self.n_heads)
        inputs = {
            "q": self.normed(draw(*heads, self.head_size)),
            "k": self.normed(draw(*heads, self.head_size)),
            "v": draw(*heads, width),
            "log_decay": -draw(*heads).square(),
            "beta": torch.sigmoid(draw(*heads)),
            "initial": draw(ROWS, self.n_heads, self.head_size, width),
        }
        forms: dict[str, Function] = {"fla": delta_in_kernels}
        return Trial(delta_memory, forms, inputs, ("q", "k", "v"), trial_layout())

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """See :meth:`Memory.statistics`; ``beta`` is how much of a value a token replaces."""
        beta = torch.sigmoid(self.beta(h)).flatten(0, 1)
        return super().statistics(h) | {"beta": beta}

    def flops_per_token(self) -> float:
        """Projections; per entry of the state, decay, old value (2), write (2) and read (2)."""
        gates = 2.0 * (self.gate.strength.weight.numel() + self.beta.weight.numel())
        state = self.n_heads * self.head_size**2
        return self.around_flops() + gates + 7.0 * state


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

        S_t = a_t (I - b_t k_t k_tᵀ) S_{t-1} + b_t k_t v_tᵀ        y_t = S_tᵀ q_t

    with a_t = exp(log_decay_t) (arXiv 2412.06464). Within a chunk, with c_t the decay since its
    start and S its state, S_t = c_t S + sum_s (c_t / c_s) k_s u_sᵀ, where the values u that are
    really written solve a triangular system (the WY form of arXiv 2406.06484):

        u_t + b_t sum_{s<t} (c_t / c_s) (k_t k_s) u_s = b_t (v_t - c_t Sᵀ k_t)

    Its solution is affine in S, so a chunk is a fold whose decay is a matrix.

    Args:
        q: (B, T, H, K) queries, scaled.
        k: (B, T, H, K) keys of length 1 at most.
        v: (B, T, H, V) values.
        log_decay: (B, T, H), at most 0.
        beta: (B, T, H) writing strengths, from 0 to 1.
        initial: (B, H, K, V) state before the first token.
        layout: of the tokens; a document starts from zero.
        context: the ranks that the sequence is cut over.
        precision: of float32 products.

    Returns:
        (B, T, H, V), and the state after the last token (B, H, K, V).
    """
    matmul = partial(product, precision=precision)
    chunks = Chunks(layout, CHUNK)
    q, k, v, log_decay, beta = map(chunks.cut, (q, k, v, log_decay, beta))
    left, since_start, to_end = pair_decays(log_decay, chunks)
    beta, since_start, to_end = (x.unsqueeze(-1) for x in (beta, since_start, to_end))

    system = (beta * matmul(k, k.mT) * left).tril(-1)  # unit diagonal understood
    right = torch.cat([beta * v, beta * since_start * k], dim=-1)
    # u is written - forgotten S.
    solved = solve_unit_lower(system, right)
    written, forgotten = solved.split([v.shape[-1], k.shape[-1]], dim=-1)

    kept = (to_end * k).mT  # (B, H, N, K, C)
    unit = torch.eye(k.shape[-1], device=k.device, dtype=k.dtype)
    decay = since_start[..., -1:, :] * unit - matmul(kept, forgotten)
    folds = Fold(decay, matmul(kept, written))
    states, final = chunk_states(folds, initial, context, precision)  # (B, H, N, K, V)
    values = written - matmul(forgotten, states)
    y = matmul(matmul(q, k.mT) * left, values) + matmul(since_start * q, states)
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
    """:func:`delta_memory` in flash-linear-attention's kernels; q, k, v in the products' dtype.

    Over several ranks, a first pass from the unit matrix beside nothing, with values beside zeros,
    ends in the fold of this rank's tokens.
    """
    gates, where = (log_decay, beta), (layout.stretches.fresh, layout.ends, layout.ends_host)
    if context is not None:
        width = k.shape[-1]
        unit = torch.eye(width, device=k.device, dtype=initial.dtype)
        unit = unit.expand(*initial.shape[:2], -1, -1)
        nothing = torch.cat([unit, torch.zeros_like(initial)], dim=-1)
        _, fold = fla_delta(k, k, F.pad(v, (width, 0)), *gates, nothing, *where)
        initial = state_of_rank(fold, initial, context)
    return fla_delta(q, k, v, *gates, initial, *where)
