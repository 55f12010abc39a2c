"""A bank of slots that the context writes: the paper's memory, made to change with the text."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.kernels.choice import Function, Trial
from gam_scale.kernels.products import Precision, product
from gam_scale.kernels.slot import fla_slot
from gam_scale.model.context import Context
from gam_scale.model.gam import HeadLayer
from gam_scale.model.layout import Layout
from gam_scale.model.memory.base import Memory, horizons_of
from gam_scale.model.memory.gate import DecayGate, exact
from gam_scale.model.memory.heads import HeadMemory, Heads
from gam_scale.model.memory.pairs import MIN_LOG_DECAY, PairDecays, decay_between
from gam_scale.model.memory.recurrence import Chunks, Fold, chunk_states, state_of_rank
from gam_scale.model.norm import unit_size
from gam_scale.model.parts import MIXERS, Naming
from gam_scale.model.policy import Draw, Policy
from gam_scale.model.shape import LONGEST, Shape
from gam_scale.model.trial import LENGTH, ROWS, trial_layout, trial_numbers
from gam_scale.strict import option

CHUNK = 64
_TOP_K = 16


@MIXERS.register
@dataclass(frozen=True)
class SlotLayer(HeadLayer):
    """A gated bank of key and value rows."""

    kind: Literal["slot"] = "slot"
    n_slots: int = option(64, "rows of each head's state", at_least=1, at_most=LONGEST)
    gate: Literal["routed", "plain"] = option(
        "routed",
        "which rows a token writes; routed: the top_k rows whose gates it opens most, while the "
        "others stay as they are; plain: all rows (Gated Slot Attention)",
    )
    top_k: int = option(
        _TOP_K, "rows that a token writes, with gate routed", at_least=1, at_most=LONGEST
    )

    gpu_block_kind: ClassVar[str] = "slot"
    kernel: ClassVar[str] = "fla"
    # A slot's gate sets both how much a slot takes in and how long it keeps that. With horizons
    # of up to 65,536 tokens, texts of 64 leave no trace (0.13 of 8 pairs answered; here 0.71).
    recall: ClassVar[dict[str, tuple[str, ...]]] = {
        "cpu": (
            "model.memory.min_horizon=1.5",
            "model.memory.max_horizon=100",
            "model.memory.top_k=4",
        )
    }
    small_settings: ClassVar[dict[str, Any]] = {"n_heads": 2, "n_slots": 6, "top_k": 2}

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`."""
        super().check_own(name)
        if self.gate == "plain" and self.top_k != _TOP_K:
            raise UserError(
                f"{name('top_k')} is {self.top_k} with gate plain, where a token writes all rows; "
                "expected gate routed, or no top_k"
            )

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return SlotMemory(self, shape)


def _unit_rows(module: "BankMemory", value: Tensor, draw: Draw) -> None:
    """Draw a bank of rows about as long as the keys and values that will replace them."""
    nn.init.normal_(value, generator=draw.generator)


class BankMemory(HeadMemory):
    """A bank of slots per head whose learned start the context overwrites; see :func:`slot_memory`.

    Args:
        heads: sizes of the heads, and settings of the layers around them.
        n_slots: rows of each head's state.
        gate: decides how fast rows decay, for :meth:`log_decays`.
        shape: settings of the model that all layers share.
        learned: whether a document starts with learned rows; otherwise with zeros.
    """

    policy: ClassVar[dict[str, Policy]] = {"bank": Policy(_unit_rows, "embedding", "never")}

    def __init__(
        self, heads: Heads, n_slots: int, gate: DecayGate, shape: Shape, *, learned: bool = True
    ) -> None:
        super().__init__(heads, shape)
        self.gate = gate
        self.rows = (self.n_heads, n_slots, 2 * self.head_size)
        self.bank = nn.Parameter(torch.empty(self.rows)) if learned else None
        self.score_scale = self.head_size**-0.5

    @abstractmethod
    def log_decays(self, h: Tensor, *, training: bool) -> Tensor:
        """Return rows' log decays (B, T, H, M) for (B, T, d); noise, if any, in training only."""

    @abstractmethod
    def gates_flops(self) -> float:
        """Return the FLOPs per token of the layers that decide decays."""

    def initial(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return the learned bank or zeros, (B, H, n_slots, 2 d / H)."""
        return self._start(device, dtype).expand(batch_size, -1, -1, -1)

    def norm_heads(self, x: Tensor) -> Tensor:
        """Scale to unit mean square: scores, scaled by 1 / sqrt(K), then start near unit size."""
        return unit_size(x)

    def gates(self, h: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`HeadMemory.gates`: log decays of rows."""
        return (self.log_decays(h, training=self.training).clamp(min=MIN_LOG_DECAY),)

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
        bank = self._start(state.device, state.dtype)
        arguments = (q * self.score_scale, k, v, log_decay, state, bank, layout, context)
        if self.implementation == "fla":
            return slot_in_kernels(*arguments)
        return slot_memory(*arguments, self.fp32_matmul)

    def _start(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a new document's rows, (H, M, K + V)."""
        if self.bank is None:
            return torch.zeros(self.rows, device=device, dtype=dtype)
        return exact(self.bank)

    def slot_horizons(self, h: Tensor) -> Tensor:
        """Return over how many tokens slots forget, by mean decay: (B, T, d) -> (B M, H).

        A token leaves most slots as they are, so a single one does not show how fast they forget.
        """
        log_decay = self.log_decays(h, training=False).clamp(min=MIN_LOG_DECAY)
        return horizons_of(log_decay.mean(1, keepdim=True))

    def trials(self, context: int) -> list[Trial]:
        """See :meth:`HasKernels.trials`; some slots are not written to."""
        draw, heads = trial_numbers(), (ROWS, LENGTH, self.n_heads)
        slots = self.rows[1:]
        decay = draw(*heads, slots[0])
        inputs = {
            "q": self.norm_heads(draw(*heads, self.head_size)) * self.score_scale,
            "k": self.norm_heads(draw(*heads, self.head_size)),
            "v": draw(*heads, self.head_size),
            "log_decay": (-decay.square() * (decay > 0)).clamp(min=MIN_LOG_DECAY),
            "initial": draw(ROWS, self.n_heads, *slots),
            "bank": draw(self.n_heads, *slots),
        }
        forms: dict[str, Function] = {"fla": slot_in_kernels}
        return [Trial(slot_memory, forms, inputs, ("q", "k", "v"), trial_layout())]

    def flops_per_token(self) -> float:
        """Count projections and, per row and channel of the state, decay, write (2), read (2)."""
        return self.around_flops() + self.gates_flops() + 5.0 * math.prod(self.rows)


class SlotMemory(BankMemory):
    """A bank of slots with a gate for each slot.

    With the routed gate, a token writes to the ``top_k`` slots whose gates it opens most, and all
    others keep exactly what they hold.
    """

    def __init__(self, layer: SlotLayer, shape: Shape) -> None:
        gate = DecayGate(shape.d_model, layer.n_slots, layer.horizons(shape), layer.n_heads)
        super().__init__(layer.heads(shape), layer.n_slots, gate, shape)
        self.top_k = layer.top_k if layer.gate == "routed" else None

    def log_decays(self, h: Tensor, *, training: bool) -> Tensor:
        """See :meth:`BankMemory.log_decays`."""
        return self.gate(h, self.top_k)

    def gates_flops(self) -> float:
        """See :meth:`BankMemory.gates_flops`."""
        return 2.0 * self.gate.strength.weight.numel()

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """See :meth:`Memory.statistics`; with a routed gate, ``horizon`` is that of slots."""
        if self.top_k is None:
            return super().statistics(h)
        return {"horizon": self.slot_horizons(h)} | self.output_statistics(h)


def slot_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    bank: Tensor,
    layout: Layout,
    context: Context | None = None,
    precision: Precision = "ieee",
) -> tuple[Tensor, Tensor]:
    """Read a bank of M key and value rows per head, each token after writing to it.

        K_t = a_t K_{t-1} + (1 - a_t) k_tᵀ        V_t = a_t V_{t-1} + (1 - a_t) v_tᵀ
        y_t = V_tᵀ softmax(K_t q_t)

    with a_t = exp(log_decay_t) a factor of each row (Gated Slot Attention, arXiv 2409.07146). A
    document starts with ``bank``. Where a_t = 1 throughout, nothing else can be read, and this is
    the paper's constant memory.

    Args:
        q: (B, T, H, K) queries, scaled.
        k: (B, T, H, K) keys.
        v: (B, T, H, V) values.
        log_decay: (B, T, H, M), from
            :data:`~gam_scale.model.memory.pairs.MIN_LOG_DECAY` to 0.
        initial: (B, H, M, K + V), rows of keys and values before the first token.
        bank: (H, M, K + V), the rows of a new document.
        layout: the tokens' layout.
        context: the ranks over which the sequence is cut.
        precision: precision of float32 products.

    Returns:
        (B, T, H, V), and the rows after the last token (B, H, M, K + V).
    """
    matmul = partial(product, precision=precision)
    chunks = Chunks(layout, CHUNK)
    width = q.shape[-1]
    q, k, v, log_decay = map(chunks.cut, (q, k, v, log_decay))
    total = chunks.totals(log_decay)  # (B, H, N, C, M)
    share = -torch.expm1(log_decay)  # 1 - a, without the cancellation
    carried, last = chunks.carried.unsqueeze(-1), chunks.last.unsqueeze(-1)
    survival = torch.exp(total)  # of the rows that a token's document started with
    from_chunk, from_bank = survival * carried, survival * ~carried

    decay, bank_left = from_chunk[..., -1:, :].mT, from_bank[..., -1:, :].mT  # (B, H, N, M, 1)
    shares_left = share * decay_between(total, total[..., -1:, :]) * last
    rows = torch.cat([k, v], dim=-1)
    bank = bank[:, None]  # (H, 1, M, K + V)
    folds = Fold(decay, matmul(shares_left.mT, rows) + bank_left * bank)
    states, final = chunk_states(folds, initial, context)  # (B, H, N, M, K + V)

    pairs = PairDecays(log_decay, total, share, chunks.same, precision)
    scores = pairs.sum(matmul(q, k.mT) * chunks.same)
    scores = scores + from_chunk * matmul(q, states[..., :width].mT)
    scores = scores + from_bank * matmul(q, bank[..., :width].mT)
    weights = torch.softmax(scores, dim=-1)
    y = matmul(pairs.mix(weights) * chunks.same, v)
    y = y + matmul(weights * from_chunk, states[..., width:])
    y = y + matmul(weights * from_bank, bank[..., width:])
    return chunks.join(y), final


def slot_in_kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    bank: Tensor,
    layout: Layout,
    context: Context | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`slot_memory` in flash-linear-attention's kernels.

    q, k and v come in the dtype of products. Over several ranks, a first pass from zeros gives what
    this rank's tokens write; the sums of log decays give what they leave of each row.
    """
    where = (layout.stretches.starts_document, layout.ends, layout.ends_host)
    if context is not None:
        _, write = fla_slot(k, k, v, log_decay, torch.zeros_like(initial), bank, *where)
        left = log_decay.sum(1).exp().unsqueeze(-1)  # (B, H, M, 1)
        if layout.documents is not None:
            left = left * (layout.documents[:, -1] == 0).view(-1, 1, 1, 1)
        initial = state_of_rank(torch.cat([left, write], dim=-1), initial, context)
    return fla_slot(q, k, v, log_decay, initial, bank, *where)
