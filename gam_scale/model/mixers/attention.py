"""The paper's Transformer block: pre-norm causal attention, then a feed-forward network."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.kernels.attention import attend
from gam_scale.model.block import Block, State
from gam_scale.model.context import Context
from gam_scale.model.dropout import Dropout
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.norm import SIZE_FLOOR
from gam_scale.model.norms.rmsnorm import RMSNorm
from gam_scale.model.parts import MIXERS, MixerConfig, Naming, check_divides
from gam_scale.model.policy import TO_RESIDUAL, stacked
from gam_scale.model.rotary import turn
from gam_scale.model.shape import LONGEST, WIDEST, Shape
from gam_scale.strict import option

_MIN_CAPACITY = 64


@MIXERS.register
@dataclass(frozen=True)
class AttentionLayer(MixerConfig):
    """Multi-head causal self-attention."""

    kind: Literal["attention"] = "attention"
    n_heads: int = option(8, "attention heads; divides d_model", at_least=1, at_most=WIDEST)
    n_kv_heads: int = option(
        0,
        "heads of keys and values, each shared by equally many heads of queries (grouped-query "
        "attention, arXiv 2305.13245); divides n_heads; 0: n_heads",
        at_least=0,
        at_most=WIDEST,
    )
    window: int = option(
        0,
        "most recent tokens that a token attends to, itself included; 0: all of its document",
        at_least=0,
        at_most=LONGEST,
    )
    qk_norm: bool = option(
        False,
        "normalise the queries and keys of each head (RMSNorm with weights) before they are "
        "multiplied",
    )
    positions: Literal["model", "none", "rotary"] = option(
        "model",
        "whether queries and keys have rotary positions; model: as model.position; none: no; "
        "rotary: yes",
    )

    gpu_block_kind: ClassVar[str] = "attention"
    drops_weights: ClassVar[bool] = True
    sections: ClassVar[tuple[str, ...]] = ("attention",)
    # Zoology's order: a convolution, here a static gam layer's, ties a value to its key before
    # attention reads both. Two layers of attention alone still guess after 1,200 steps, with
    # rotary or learned positions; this order recalls after 300.
    recall_after: ClassVar[tuple[str, ...]] = ("static",)
    small_settings: ClassVar[dict[str, Any]] = {"n_heads": 2}

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
        check_divides(name("n_heads"), self.n_heads, shape, even=self.is_rotary(shape))
        if self.n_kv_heads and self.n_heads % self.n_kv_heads:
            raise UserError(
                f"{name('n_kv_heads')} is {self.n_kv_heads}, which does not divide n_heads "
                f"{self.n_heads}; expected a divisor, or 0 for as many"
            )
        if self.window == 1:
            raise UserError(
                f"{name('window')} is 1, in which a token sees itself alone; expected at least 2, "
                "or 0 for no window"
            )

    def slow_on_gpu(self, precision: str) -> str:
        """See :meth:`MixerConfig.slow_on_gpu`: torch's kernels with windows take half floats."""
        if not self.window or precision != "fp32":
            return ""
        return (
            "windows of attention in fp32 are computed on a GPU a few queries after the others, "
            "without a kernel; train.precision bf16 has one"
        )

    def is_rotary(self, shape: Shape) -> bool:
        """Return whether queries and keys are turned by rotary positions."""
        if self.positions == "model":
            return shape.rotary != "none"
        return self.positions == "rotary"

    def head_width(self, shape: Shape) -> float:
        """See :meth:`MixerConfig.head_width`."""
        return shape.d_model / self.n_heads

    def turned_widths(self, shape: Shape) -> tuple[int, ...]:
        """See :meth:`MixerConfig.turned_widths`."""
        return (shape.d_model // self.n_heads,) if self.is_rotary(shape) else ()


class AttentionBlock(Block):
    """Multi-head causal self-attention and a feed-forward network, both pre-norm and residual.

        x = x + dropout(Linear(attention(LayerNorm(x))))
        x = x + FFN(LayerNorm(x))

    Attention weights are dropped out in training as ``nn.MultiheadAttention`` does.
    """

    layer: AttentionLayer

    def make(self, shape: Shape) -> None:
        """See :meth:`Block.make`."""
        d, layer = shape.d_model, self.layer
        self.n_heads, self.window = layer.n_heads, layer.window
        self.n_kv_heads = layer.n_kv_heads or layer.n_heads
        self.width = d // layer.n_heads  # of a head
        rows = [n * self.width for n in (self.n_heads, self.n_kv_heads, self.n_kv_heads)]
        self.qkv = Linear(d, sum(rows), bias=shape.biases, weight=stacked(*rows))
        self.q_norm = RMSNorm(self.width, SIZE_FLOOR) if layer.qk_norm else None
        self.k_norm = RMSNorm(self.width, SIZE_FLOOR) if layer.qk_norm else None
        self.out = Linear(d, d, bias=shape.biases, weight=TO_RESIDUAL)
        self.is_rotary = layer.is_rotary(shape)
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
            y = attend(q, k, v, layout.spans, layout.spans_host, p, self.window)
        elif not self.is_plain or (p and h.device.type == "cpu"):
            # torch's own function repeats keys and, on a CPU, holds all T x T weights for dropout.
            y = attend(q, k, v, dropout=p, window=self.window)
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return [self._out(y)]

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return an empty cache: keys and values (B, heads, capacity, d / heads), and their number.

        The number stays on the CPU, where it is read without waiting for a GPU.
        """
        shape = (batch_size, self.n_kv_heads, 0, self.width)
        k, v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return {"k": k, "v": v, "length": torch.tensor(0, device="cpu")}

    def mix_next(self, h: Tensor, state: State, layout: Layout) -> tuple[list[Tensor], State]:
        """See :meth:`Block.mix_next`.

        ``state`` is used up: its buffers are written in place, and replaced when full, so a step
        copies O(1) tokens on average. Clone its tensors first to continue one text twice.

        With documents, a token sees as many keys before its own as its position says.
        """
        q, k, v = self._heads(h, layout)
        length, new = int(state["length"]), h.shape[1]
        seen = length if self.reach is None else min(length, self.reach)
        keys, end = _append(state["k"], k, length, seen)
        values, _ = _append(state["v"], v, length, seen)
        now = slice(end - seen - new, end)
        k, v = keys[:, :, now], values[:, :, now]
        if layout.documents is not None:
            y = self._of_documents(q, k, v, layout)
        elif (seen and new > 1) or not (seen or self.is_plain):
            y = attend(q, k, v, window=self.window)
        else:  # one token sees all keys; the first tokens are plainly causal
            shared = not self.is_plain
            y = F.scaled_dot_product_attention(q, k, v, is_causal=not seen, enable_gqa=shared)
        state = {"k": keys, "v": values, "length": torch.tensor(end, device="cpu")}
        return [self._out(y)], state

    @property
    def is_plain(self) -> bool:
        """Whether torch's own attention computes it: no window, and no groups of heads."""
        return not self.window and self.n_kv_heads == self.n_heads

    @property
    def reach(self) -> int | None:
        """See :attr:`Block.reach`."""
        return self.window - 1 if self.window else None

    @property
    def mixes_by(self) -> str:
        """See :attr:`Block.mixes_by`."""
        return "the windows of attention" if self.window else ""

    def _heads(self, h: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, T, d / heads)."""
        sizes = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        q, k, v = self.qkv(h).unflatten(-1, (-1, self.width)).split(sizes, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if self.is_rotary:
            q, k = (turn(y, *layout.turns[y.shape[-1]]) for y in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _of_documents(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Attend from the keys' last T tokens, within documents: (B, heads, T, d / heads)."""
        new, keys = q.shape[2], k.shape[2]
        if new == keys:
            return attend(q, k, v, layout.spans, layout.spans_host, window=self.window)
        own = torch.arange(keys - new, keys, device=q.device)
        back = own.unsqueeze(1) - torch.arange(keys, device=q.device)  # from query t back to key j
        reach = layout.positions if self.reach is None else layout.positions.clamp(max=self.reach)
        seen = (back >= 0) & (back <= reach.unsqueeze(-1))  # (B, T, S)
        shared = self.n_kv_heads != self.n_heads
        return F.scaled_dot_product_attention(q, k, v, seen.unsqueeze(1), enable_gqa=shared)

    def _out(self, y: Tensor) -> Tensor:
        return self.dropout(self.out(y.transpose(1, 2).flatten(2)))

    def mixer_flops(self, seq_len: int) -> float:
        """See :meth:`Block.mixer_flops`: projections, and attention.

        Attention counts q k and the weighted sum of v over the (seq_len + 1) / 2 tokens that a
        token sees on average in one document of seq_len tokens, fewer with a window. What a kernel
        computes and masks away does not count.
        """
        projections = 2.0 * (self.qkv.weight.numel() + self.out.weight.numel())
        seen = (seq_len + 1) / 2
        if beyond := max(0, seq_len - self.window) if self.window else 0:
            seen -= beyond * (beyond + 1) / 2 / seq_len
        return projections + 2 * 2.0 * self.out.in_features * seen


def _append(buffer: Tensor, new: Tensor, length: int, seen: int) -> tuple[Tensor, int]:
    """Write ``new`` (B, heads, T, d / heads) behind the ``length`` tokens of a buffer.

    A full buffer is replaced: its last ``seen`` tokens go to a new one, with as much room again.

    Returns:
        The buffer, and the index behind its last token.
    """
    if length + new.shape[2] > buffer.shape[2]:
        capacity = max(_MIN_CAPACITY, seen + new.shape[2], 2 * seen)
        # Under autocast, keys and values have another dtype than the empty buffer of the start.
        grown = new.new_empty((*buffer.shape[:2], capacity, buffer.shape[3]))
        grown[:, :, :seen] = buffer[:, :, length - seen : length]
        buffer, length = grown, seen
    end = length + new.shape[2]
    buffer[:, :, length:end] = new
    return buffer, end
