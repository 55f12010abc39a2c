"""The paper's Transformer block: pre-norm causal attention, then a feed-forward network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.config import ModelConfig
from gam_scale.kernels.attention import attend
from gam_scale.model.context import Context
from gam_scale.model.dropout import Dropout
from gam_scale.model.feedforward import FeedForward
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.norm import LayerNorm
from gam_scale.model.rotary import turn

_MIN_CAPACITY = 64


class AttentionBlock(nn.Module):
    """Multi-head causal self-attention and a feed-forward network, both pre-norm and residual.

        x = x + dropout(Linear(attention(LayerNorm(x))))
        x = x + FFN(LayerNorm(x))

    Attention weights are dropped out in training as ``nn.MultiheadAttention`` does.
    """

    reach = None  # see GAMBlock

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        d = model.d_model
        self.n_heads = model.attention.n_heads
        self.norm1 = LayerNorm(d)
        self.qkv = Linear(d, 3 * d)
        self.out = Linear(d, d)
        self.out.is_residual_output = True
        self.is_rotary = model.position == "rotary"
        self.dropout = Dropout(model.dropout)
        self.norm2 = LayerNorm(d)
        self.ffn = FeedForward(d, model.ffn_mult, model.dropout)

    def forward(self, x: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d); a token sees its own document only.

        Ranks that share a sequence gather its keys and values: the one exchange that grows with T.
        """
        q, k, v = self._heads(x, layout)
        if context is not None:
            # (ranks, 2, B, heads, T, K) -> (2, B, heads, ranks T, K)
            k, v = context.gather(torch.stack([k, v])).movedim(0, 3).flatten(3, 4)
        p = self.dropout.p if self.training else 0.0
        if context is not None or layout.documents is not None:
            y = attend(q, k, v, layout.spans, layout.spans_host, p)
        elif p and x.device.type == "cpu":  # where torch's own holds all T x T weights
            y = attend(q, k, v, dropout=p)
        else:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        return self._finish(x, y)

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """An empty cache: keys and values (B, heads, capacity, d / heads), and how many are filled.

        ``length`` stays on the CPU, where it is read without waiting for a GPU.
        """
        shape = (batch_size, self.n_heads, 0, self.out.in_features // self.n_heads)
        k, v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return {"k": k, "v": v, "length": torch.tensor(0, device="cpu")}

    def extend(
        self, x: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The next tokens (B, T, d) after ``state``.

        ``state`` is used up: its buffers are written in place and doubled when full, so a step
        copies O(1) tokens on average. Clone its tensors first to continue one text twice.
        """
        q, k, v = self._heads(x, layout)
        seen = int(state["length"])
        total = seen + x.shape[1]
        keys, values = (_append(state[name], new, seen) for name, new in (("k", k), ("v", v)))
        keys_so_far, values_so_far = keys[:, :, :total], values[:, :, :total]
        if seen and x.shape[1] > 1:
            y = attend(q, keys_so_far, values_so_far)
        else:  # one token sees everything; the first tokens are plainly causal
            y = F.scaled_dot_product_attention(q, keys_so_far, values_so_far, is_causal=not seen)
        state = {"k": keys, "v": values, "length": torch.tensor(total, device="cpu")}
        return self._finish(x, y), state

    def _heads(self, x: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, heads, T, d / heads)."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        if self.is_rotary:
            q, k = (turn(y, *layout.turns[y.shape[-1]]) for y in (q, k))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.ffn(self.norm2(x))

    def flops_per_token(self, seq_len: int) -> float:
        """Forward FLOPs per token: projections, feed-forward, and attention.

        Attention counts q k and the weighted sum of v over the (seq_len + 1) / 2 tokens that a
        token sees on average in one document of seq_len tokens; what a kernel computes and masks
        away does not count.
        """
        projections = 2.0 * (self.qkv.weight.numel() + self.out.weight.numel())
        attention = 2 * 2.0 * self.out.in_features * (seq_len + 1) / 2
        return projections + attention + self.ffn.flops_per_token()


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
