"""A memory after Raven: many slots per head, of which a router lets each token write a few."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.kernels.lanes import draw_lanes
from gam_scale.kernels.operator import operator
from gam_scale.model.gam import DecayLayer
from gam_scale.model.layout import Layout
from gam_scale.model.linear import linear
from gam_scale.model.memory.base import Memory
from gam_scale.model.memory.gate import DecayGate, exact
from gam_scale.model.memory.heads import Activation
from gam_scale.model.mixers.slot import BankMemory
from gam_scale.model.norm import SIZE_FLOOR
from gam_scale.model.norms.rmsnorm import RMSNorm
from gam_scale.model.parts import MIXERS, Naming, recall_layers
from gam_scale.model.policy import MATRIX, Policy
from gam_scale.model.shape import LONGEST, Shape
from gam_scale.strict import option


@MIXERS.register
@dataclass(frozen=True)
class RavenLayer(DecayLayer):
    """A large bank of key and value rows, of which a router chooses those that a token writes."""

    kind: Literal["raven"] = "raven"
    n_slots: int = option(256, "rows of each head's state", at_least=1, at_most=LONGEST)
    top_k: int = option(32, "rows that a token writes", at_least=1, at_most=LONGEST)
    router_noise: float = option(
        0.0, "scale of the Gumbel noise on the router's scores in training; 0: no noise", at_least=0
    )
    min_horizon: float = option(
        0.5,
        "writes over which a slot of the fastest head forgets at initialisation, each by a token "
        "that writes equally to top_k slots",
        above=0,
    )
    max_horizon: float = option(
        4.0,
        "writes over which a slot of the slowest head forgets at initialisation; horizons between "
        "the two are spread evenly in the logarithm, and a single head takes the middle; 0: as "
        "many writes as a slot gets from data.seq_len tokens",
        at_least=0,
    )
    qk_norm: Literal["plain", "weighted"] = option(
        "plain",
        "norms of queries and of keys; plain: without weights; weighted: with a weight each",
    )
    score_scale: float = option(
        0.0,
        "factor of the products of queries and keys; 0: 1 / sqrt(head width); in the published "
        "layer it is 1",
        at_least=0,
    )
    read_activation: Activation = option("none", "activation of the read-out, before its norm")
    read_norm: Literal["heads", "whole"] = option(
        "heads",
        "norm of the read-out without an output gate; heads: of each head, without a weight; "
        "whole: of all heads together, with a weight",
    )
    start: Literal["bank", "zeros"] = option(
        "bank", "rows that a document starts with; bank: learned rows; zeros: rows of zeros"
    )

    counts_writes: ClassVar[bool] = True
    gpu_block_kind: ClassVar[str] = "raven"
    kernel: ClassVar[str] = "fla"
    not_from_sections: ClassVar[tuple[str, ...]] = (
        "n_slots",
        "top_k",
        "min_horizon",
        "max_horizon",
    )
    # As many rows as a slot memory has in that task.
    recall: ClassVar[dict[str, tuple[str, ...]]] = recall_layers(
        {"kind": "raven", "n_heads": 1, "n_slots": 32, "top_k": 4},
        {"kind": "raven", "n_heads": 1, "n_slots": 64, "top_k": 8},
    )
    small_settings: ClassVar[dict[str, Any]] = {"n_heads": 2, "n_slots": 6, "top_k": 2}

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        if self.top_k > self.n_slots:
            raise UserError(
                f"{name('top_k')} is {self.top_k}, more than n_slots {self.n_slots}; expected at "
                "most those"
            )
        super().check(shape, name)

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`."""
        super().check_own(name)
        if self.read_norm == "whole" and self.output_gate != "none":
            raise UserError(
                f"{name('read_norm')} is whole with output_gate {self.output_gate}, which has a "
                "norm of each head; expected output_gate none, or read_norm heads"
            )

    def horizons(self, shape: Shape) -> tuple[float, float]:
        """Return the shortest and the longest initial horizon, in writes to a slot."""
        return super().horizons(replace(shape, context=self._writes(shape.context)))

    def at_length(self, seq_len: int) -> Self:
        """See :meth:`MixerConfig.at_length`."""
        return super().at_length(self._writes(seq_len))

    def _writes(self, tokens: int) -> int:
        """Return the writes to a slot by ``tokens`` that choose all slots equally often."""
        return max(1, tokens * self.top_k // self.n_slots)

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return RavenMemory(self, shape)


class RavenMemory(BankMemory):
    """A bank of slots per head, whose rows decay where a token writes, and only there:

        log a_m = -rate softplus(W_a h + b) r_m        r = shares(W_r h), sum_m r_m = 1

    with one rate per head. A token's key and value enter row m with the share 1 - a_m
    (:func:`~gam_scale.model.mixers.slot.slot_memory`). The recurrence and its router are those of
    "Raven: High-Recall Sequence Modeling with Sparse Memory Routing" (Afzal, Bick, Xing, Cevher and
    Gu, 2026; github.com/goombalab/raven). The rest is GAM's by default: norms without weights,
    scores over the root of a head's width, a learned bank for a document's start. Settings give the
    published layer (docs/memories.md). With rates of 0 nothing is written, which leaves the paper's
    constant memory.

    A slot persists because few tokens choose it, so rates may be high. Low rates, which long texts
    need in :class:`~gam_scale.model.mixers.slot.SlotMemory`, would write next to nothing.
    """

    def __init__(self, layer: RavenLayer, shape: Shape) -> None:
        shortest, longest = layer.horizons(shape)
        shares = (shortest / layer.top_k, longest / layer.top_k)
        gate = DecayGate(shape.d_model, layer.n_heads, shares)
        if layer.decay_start == "published":
            gate.begin_as_published(least_rate=0.0)
        heads, learned = layer.heads(shape), layer.start == "bank"
        super().__init__(heads, layer.n_slots, gate, shape, learned=learned)
        self.top_k, self.noise = layer.top_k, layer.router_noise
        self.score_scale = layer.score_scale or self.score_scale
        self.q_norm = self.k_norm = self.read_norm = None
        if layer.qk_norm == "weighted":
            self.q_norm = RMSNorm(self.head_size, SIZE_FLOOR)
            self.k_norm = RMSNorm(self.head_size, SIZE_FLOOR)
        if layer.read_norm == "whole":
            self.read_norm = RMSNorm(shape.d_model, SIZE_FLOOR)
        self.read_activation = layer.read_activation
        self.router = Router(shape.d_model, layer.n_heads * layer.n_slots, bias=False)

    @property
    def longest_horizon(self) -> float:
        """See :attr:`WrittenMemory.longest_horizon`, for tokens that choose all slots alike."""
        return super().longest_horizon * self.rows[1]

    def norm_queries_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`HeadMemory.norm_queries_keys`."""
        if self.q_norm is None or self.k_norm is None:
            return super().norm_queries_keys(q, k)
        return self.q_norm(q), self.k_norm(k)

    def norm_read(self, y: Tensor) -> Tensor:
        """See :meth:`HeadMemory.norm_read`."""
        y = F.silu(y) if self.read_activation == "silu" else y
        if self.read_norm is None:
            return super().norm_read(y)
        return self.read_norm(y.flatten(2)).view_as(y)

    def log_decays(self, h: Tensor, *, training: bool) -> Tensor:
        """See :meth:`BankMemory.log_decays`."""
        return self.gate(h).mT * self.shares(h, training=training)

    def shares(self, h: Tensor, *, training: bool = False) -> Tensor:
        """Return the :func:`shares` of tokens: (B, T, d) -> (B, T, H, M) in float32."""
        with torch.autocast(h.device.type, enabled=False):
            scores = self.router(h).unflatten(-1, (self.n_heads, -1))
            if training and self.noise:
                scores = scores + self.noise * gumbel(scores)
            return shares(scores, self.top_k)

    def gates_flops(self) -> float:
        """See :meth:`BankMemory.gates_flops`."""
        return 2.0 * (self.gate.strength.weight.numel() + self.router.weight.numel())

    def state_norm(self, h: Tensor, layout: Layout) -> Tensor:
        """See :meth:`WrittenMemory.state_norm`; without noise, which would change later draws."""
        training = self.training
        self.eval()
        try:
            return super().state_norm(h, layout)
        finally:
            self.train(training)

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """See :meth:`Memory.statistics`.

        ``horizon``: over how many tokens a slot forgets, as often as it is written to.
        ``write_horizon``: the writes after which a slot has forgotten, if tokens write to ``top_k``
        slots alike. ``router_entropy``: the entropy of a token's shares, in nats; log(top_k) if
        they are alike. ``slots_used``: the share of slots that a row of tokens writes to.
        """
        given = self.shares(h)
        log_decay = self.gate(h).squeeze(2)  # (B, T, H)
        return {
            "horizon": self.slot_horizons(h),
            "write_horizon": (-self.top_k / log_decay.clamp(max=-1e-9)).flatten(0, 1),
            "router_entropy": torch.special.entr(given).sum(-1).flatten(0, 1),
            "slots_used": (given > 0).any(1).float().mean(-1),
        } | self.output_statistics(h)


class Router(nn.Linear):
    """A linear layer that scores the slots from which a token chooses.

    Scores are float32, from products in the weight's dtype, which some engines make bfloat16.
    """

    policy: ClassVar[dict[str, Policy]] = {"weight": replace(MATRIX, role="gate")}

    def forward(self, h: Tensor) -> Tensor:
        """(..., d) -> (..., H M)."""
        with torch.autocast(h.device.type, enabled=False):
            return exact(linear(h.to(self.weight.dtype), self.weight))


def shares(scores: Tensor, top_k: int) -> Tensor:
    """Turn scores of slots into shares of what a token writes, (..., M), which sum to 1.

        m = sigmoid(scores)        r = m over the sum of the top_k largest, 0 for all others

    Slots that tie with the last one chosen are chosen too, so that nothing depends on their order.
    """
    last = scores.topk(top_k, dim=-1).values[..., -1:]
    chosen = F.logsigmoid(scores).masked_fill(scores < last, -torch.inf)
    return chosen.softmax(-1)  # ratios stay exact even where every sigmoid is close to 0


def gumbel(like: Tensor) -> Tensor:
    """Draw Gumbel noise in the shape and dtype of ``like``, in 2**16 steps of probability.

    Where a block is recomputed, so is the noise, but from the same draw.
    """
    uniform = (_lanes(like).to(like.dtype) + (0.5 + (1 << 15))) / (1 << 16)
    return -(-uniform.log()).log()


@operator("gam_scale::lanes", keep="always")
def _lanes(like: Tensor) -> Tensor:
    """Draw random int16 in the shape of ``like``, as an operator like ``dropout._keep_mask``."""
    return draw_lanes(like.shape, like.device)


@_lanes.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=torch.int16, device=like.device)
