"""The paper's Transformer block: pre-norm causal attention, then a feed-forward network."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.kernels.attention import attend
from gam_scale.model.block import Block, State
from gam_scale.model.context import Context
from gam_scale.model.dropout import Dropout
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.parts import MIXERS, MixerConfig, Naming, check_divides
from gam_scale.model.policy import TO_RESIDUAL
from gam_scale.model.rotary import turn
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.strict import option

_MIN_CAPACITY = 64


@MIXERS.register
@dataclass(frozen=True)
class AttentionLayer(MixerConfig):
    """Multi-head causal self-attention."""

    kind: Literal["attention"] = "attention"
    n_heads: int = option(8, "attention heads; divides d_model", at_least=1, at_most=WIDEST)

    measured_as: ClassVar[str] = "attention"
    drops_weights: ClassVar[bool] = True
    sections: ClassVar[tuple[str, ...]] = ("attention",)
    small: ClassVar[dict[str, Any]] = {"n_heads": 2}

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Transformer"

    @property
    def is_limited(self) -> bool:
        """See :attr:`MixerConfig.is_limited`."""
        return True

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`MixerConfig.build`."""
        return AttentionBlock(self, shape)

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        check_divides(name("n_heads"), self.n_heads, shape, even=shape.rotary != "none")

    def head_width(self, shape: Shape) -> float:
        """See :meth:`MixerConfig.head_width`."""
        return shape.d_model / self.n_heads

    def turned_widths(self, shape: Shape) -> tuple[int, ...]:
        """See :meth:`MixerConfig.turned_widths`."""
        return (shape.d_model // self.n_heads,) if shape.rotary != "none" else ()


class AttentionBlock(Block):
    """Multi-head causal self-attention and a feed-forward network, both pre-norm and residual.

        x = x + dropout(Linear(attention(LayerNorm(x))))
        x = x + FFN(LayerNorm(x))

    Attention weights are dropped out in training as ``nn.MultiheadAttention`` does.
    """

    layer: AttentionLayer

    def make(self, shape: Shape) -> None:
        """See :meth:`Block.make`."""
        d = shape.d_model
        self.n_heads = self.layer.n_heads
        self.qkv = Linear(d, 3 * d, bias=shape.biases)
        self.out = Linear(d, d, bias=shape.biases, weight=TO_RESIDUAL)
        self.is_rotary = shape.rotary != "none"
        self.dropout = Dropout(shape.dropout)

    def mix(self, h: Tensor, layout: Layout, context: Context | None) -> list[Tensor]:
        """See :meth:`Block.mix`; a token sees its own document only.

        Ranks that share a sequence gather its keys and values: the one exchange that grows with T.
        """
        q, k, v = self._heads(h, layout)
        if context is not None:
            # (ranks, 2, B, heads, T, K) -> (2, B, heads, ranks T, K)
            k, v = context.gather(torch.stack([k, v])).movedim(0, 3).flatten(3, 4)
        p = self.dropout.p if self.training else 0.0
        if context is not None or layout.documents is not None:
            y = attend(q, k, v, layout.spans, layout.spans_host, p)
        elif p and h.device.type == "cpu":  # where torch's own holds all T x T weights
            y = attend(q, k, v, dropout=p)
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return [self._out(y)]

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """An empty cache: keys and values (B, heads, capacity, d / heads), and how many are filled.

        ``length`` stays on the CPU, where it is read without waiting for a GPU.
        """
        shape = (batch_size, self.n_heads, 0, self.out.in_features // self.n_heads)
        k, v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return {"k": k, "v": v, "length": torch.tensor(0, device="cpu")}

    def mix_next(self, h: Tensor, state: State, layout: Layout) -> tuple[list[Tensor], State]:
        """See :meth:`Block.mix_next`.

        ``state`` is used up: its buffers are written in place and doubled when full, so a step
        copies O(1) tokens on average. Clone its tensors first to continue one text twice.
        """
        q, k, v = self._heads(h, layout)
        seen = int(state["length"])
        total = seen + h.shape[1]
        keys, values = (_append(state[name], new, seen) for name, new in (("k", k), ("v", v)))
        keys_so_far, values_so_far = keys[:, :, :total], values[:, :, :total]
        if seen and h.shape[1] > 1:
            y = attend(q, keys_so_far, values_so_far)
        else:  # one token sees everything; the first tokens are plainly causal
            y = F.scaled_dot_product_attention(q, keys_so_far, values_so_far, is_causal=not seen)
        state = {"k": keys, "v": values, "length": torch.tensor(total, device="cpu")}
        return [self._out(y)], state

    def _heads(self, h: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, T, d / heads)."""
        q, k, v = self.qkv(h).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        if self.is_rotary:
            q, k = (turn(y, *layout.turns[y.shape[-1]]) for y in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _out(self, y: Tensor) -> Tensor:
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))

    def mixer_flops(self, seq_len: int) -> float:
        """See :meth:`Block.mixer_flops`: projections, and attention.

        It counts q k and the weighted sum of v over the (seq_len + 1) / 2 tokens that a
        token sees on average in one document of seq_len tokens; what a kernel computes and masks
        away does not count.
        """
        projections = 2.0 * (self.qkv.weight.numel() + self.out.weight.numel())
        attention = 2 * 2.0 * self.out.in_features * (seq_len + 1) / 2
        return projections + attention


def _append(buffer: Tensor, new: Tensor, seen: int) -> Tensor:
    """Write ``new`` (B, heads, T, d / heads) behind ``seen`` tokens of a buffer that grows."""
    total = seen + new.shape[2]
    if total > buffer.shape[2]:
        capacity = max(_MIN_CAPACITY, total, 2 * buffer.shape[2])
        grown = buffer.new_empty((*buffer.shape[:2], capacity, buffer.shape[3]))
        grown[:, :, :seen] = buffer[:, :, :seen]
        buffer = grown
    buffer[:, :, seen:total] = new
    return buffer
