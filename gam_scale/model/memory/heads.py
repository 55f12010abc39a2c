"""Memories with heads: queries, keys and values, and the layers around the recurrence."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.kernels.choice import PORTABLE, HasKernels
from gam_scale.model.context import Context
from gam_scale.model.conv import CausalConv
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.base import State, WrittenMemory
from gam_scale.model.memory.output_gate import OutputGate
from gam_scale.model.norm import unit_size
from gam_scale.model.policy import TO_RESIDUAL, stacked
from gam_scale.model.rotary import turn
from gam_scale.model.shape import Shape

Activation = Literal["none", "silu"]
GateChoice = Literal["none", "silu", "sigmoid"]


@dataclass(frozen=True)
class Heads:
    """The sizes of a memory's heads, and the settings of the layers around them.

    Attributes:
        n_key_heads: number of heads of queries and keys.
        key_width: channels of each query and key.
        value_width: channels of each value.
        n_value_heads: number of heads of values, each with a state: a multiple of ``n_key_heads``.
        conv_size: taps of the convolutions behind the projections; 0: none.
        activation: activation of queries, keys and values.
        output_gate: kind of the gate before the output layer.
        gate_rank: rank of the gate's matrix; 0: full.
    """

    n_key_heads: int
    key_width: int
    value_width: int
    n_value_heads: int
    conv_size: int = 0
    activation: Activation = "none"
    output_gate: GateChoice = "none"
    gate_rank: int = 0

    @property
    def projected(self) -> list[int]:
        """Channels of all queries, all keys, all values."""
        keys = self.n_key_heads * self.key_width
        return [keys, keys, self.n_value_heads * self.value_width]

    def cut(self, qkv: Tensor) -> list[Tensor]:
        """Split projections into queries and keys (B, T, n_key_heads, key_width), and values
        (B, T, n_value_heads, value_width)."""
        width = math.gcd(self.key_width, self.value_width)
        rows = qkv.unflatten(-1, (-1, width))
        parts = rows.split([channels // width for channels in self.projected], dim=2)
        heads = (self.n_key_heads, self.n_key_heads, self.n_value_heads)
        return [x.flatten(2).unflatten(2, (n, -1)) for x, n in zip(parts, heads, strict=True)]


class HeadMemory(HasKernels, WrittenMemory):
    """A memory with queries, keys and values per head, and an output layer.

        q, k, v = act(conv(W_q h)), act(conv(W_k h)), act(conv(W_v h))
        y       = W_o (norm(read) * gate(W_g h))

    The causal depthwise convolutions, the activation and the gate are settings. The size of what is
    read from a state depends on how much was written to it, so only its direction is used, as in
    RetNet (arXiv 2307.08621): an output gate has a norm with a weight; without one, each head's
    read-out is brought to unit size.
    """

    def __init__(self, heads: Heads, shape: Shape) -> None:
        super().__init__()
        d, (*_, value) = shape.d_model, heads.projected
        self.heads = heads
        self.n_heads, self.head_size = heads.n_value_heads, heads.key_width
        weight = stacked(*heads.projected)
        self.qkv = Linear(d, sum(heads.projected), bias=False, weight=weight)
        self.is_rotary = shape.rotary == "all"
        self.out = Linear(value, d, bias=False, weight=TO_RESIDUAL)
        # It is depthwise, so one for all channels equals one each for queries, keys and values.
        self.conv = None
        if heads.conv_size:
            self.conv = CausalConv(sum(heads.projected), heads.conv_size, bias=False)
        self.output_gate = None
        if heads.output_gate != "none":
            sizes = (heads.n_value_heads, heads.value_width, heads.output_gate, heads.gate_rank)
            self.output_gate = OutputGate(d, *sizes)

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return the convolutions' last inputs, and what :meth:`initial` returns."""
        dtype = torch.promote_types(dtype, torch.float32)
        state = {"memory": self.initial(batch_size, device, dtype)}
        if self.conv is not None:
            state["qkv"] = self.conv.init_state(batch_size, device, dtype)
        return state

    def forward_from(
        self, h: Tensor, state: State, layout: Layout, context: Context | None
    ) -> tuple[Tensor, State]:
        """See :meth:`WrittenMemory.forward_from`."""
        qkv, gates, heads, after = self.qkv(h), self.gates(h), self.heads, {}
        dtype, exact = qkv.dtype, state["memory"].dtype
        with torch.autocast(h.device.type, enabled=False):
            qkv = qkv.to(exact)
            if self.conv is not None:
                qkv, after["qkv"] = self.conv.forward_from(qkv, state["qkv"], layout, context)
            if heads.activation == "silu":
                qkv = F.silu(qkv)
            q, k, v = heads.cut(qkv)
            q, k = self.norm_queries_keys(q, k)
            if self.is_rotary:
                q, k = (turn(x, *layout.turns[heads.key_width]) for x in (q, k))
            if self.implementation != PORTABLE:  # kernels multiply in the run's dtype
                q, k, v = (x.to(dtype) for x in (q, k, v))
            y, after["memory"] = self.associate(gates, q, k, v, state["memory"], layout, context)
            y = self.norm_read(y.to(exact))
        if self.output_gate is not None:
            y = self.output_gate(y, h)
        return self.out(y.flatten(2).to(dtype)), after

    @abstractmethod
    def initial(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return what the heads hold before the first token, (B, H, ...) in float32 or float64."""

    @abstractmethod
    def norm_heads(self, x: Tensor) -> Tensor:
        """Bring queries or keys (B, T, H, K) to the size that the memory needs."""

    def norm_queries_keys(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries and keys, each by :meth:`norm_heads`."""
        return self.norm_heads(q), self.norm_heads(k)

    def norm_read(self, y: Tensor) -> Tensor:
        """Bring what heads read (B, T, H, V) to unit size, unless an output gate's norm does so."""
        return unit_size(y) if self.output_gate is None else y

    @abstractmethod
    def gates(self, h: Tensor) -> tuple[Tensor, ...]:
        """Return the gates of tokens (B, T, d) on the state, float32 or float64: (B, T, H, ...).

        Called under the run's autocast, which a wide projection obeys; a
        :class:`~gam_scale.model.memory.gate.Gate` does not.
        """

    @abstractmethod
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
        """Write and read the state by :meth:`gates`; return (B, T, H, V) and the final state."""

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """See :meth:`Memory.statistics`; ``output_gate`` is what the read-out is multiplied by."""
        return super().statistics(h) | self.output_statistics(h)

    def output_statistics(self, h: Tensor) -> dict[str, Tensor]:
        """Return how far the output gate opens, by head; empty if there is no gate."""
        if self.output_gate is None:
            return {}
        opened = self.output_gate.opened(h)  # (B, T, H, V)
        return {"output_gate": opened.movedim(2, -1).flatten(0, 2)}

    def around_flops(self) -> float:
        """Return the FLOPs per token around the heads: projections, convolutions, output gate."""
        linears = 2.0 * (self.qkv.weight.numel() + self.out.weight.numel())
        rest = (part for part in (self.conv, self.output_gate) if part is not None)
        return linears + sum(part.flops_per_token() for part in rest)
