"""The language model: embeddings, a stack of blocks, a final norm, a head."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from gam_scale.model.block import Block
from gam_scale.model.carry import CarriedRows
from gam_scale.model.config import ModelConfig
from gam_scale.model.context import Context
from gam_scale.model.dropout import Dropout
from gam_scale.model.embedding import Head, PositionEmbedding, TokenEmbedding
from gam_scale.model.init import initialise
from gam_scale.model.layout import Layout
from gam_scale.model.linear import linear
from gam_scale.model.loss import capped, linear_cross_entropy
from gam_scale.model.parts import MixerConfig


def stack_name(layers: Sequence[MixerConfig]) -> str:
    """Return the name of a stack of such layers."""
    *first, last = dict.fromkeys(layer.kind for layer in layers)
    if first:
        return f"Language model of {', '.join(first)} and {last} layers"
    return layers[0].title


class LanguageModel(nn.Module):
    """A causal language model over any stack of blocks.

    Each block (:class:`~gam_scale.model.block.Block`) maps the residual stream (B, T, d_model) to
    the same shape: with ``forward`` in training, with ``extend`` and a state in generation.

    Attributes:
        context: the ranks that share each sequence, of which this one holds T tokens. Set by an
            engine that cuts sequences over ranks; None: every rank holds whole sequences.
        z_loss: weight of a term that adds to gradients but not to the loss; see
            :func:`~gam_scale.model.loss.linear_cross_entropy`. Set where the model is trained.
    """

    context: Context | None = None
    z_loss: float = 0.0
    blocks: Sequence[Block]
    """An ``nn.ModuleList``, whose type cannot name that of its modules."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "resolve model.vocab_size from the tokenizer first"
        self.config = config
        self.embedding = TokenEmbedding(config.vocab_size, config.d_model)
        self.position: PositionEmbedding | None = None
        if config.position == "learned":
            self.position = PositionEmbedding(config.max_seq_len, config.d_model)
        self.dropout = Dropout(config.dropout)
        blocks = nn.ModuleList(layer.build(config.shape) for layer in config.stack())
        self.blocks = cast(Sequence[Block], blocks)
        self.norm = config.final_norm().build(config.shape)
        self.head = None if config.tied_head else Head(config.d_model, config.vocab_size)
        # A model is made without memory and then filled; checkpoints hold parameters alone.
        buffers = [name for name, _ in self.named_buffers()]
        assert not buffers, f"{buffers} would never be filled: compute them in forward"

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        layout: Layout | None = None,
        carried: CarriedRows | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return the summed cross-entropy over valid targets or, without targets, logits.

        Args:
            tokens: (B, T) ids.
            targets: (B, T) next ids, -100 where there is none.
            layout: the tokens' layout; None for a plain stream.
            carried: the states that the rows continue; replaced by the states after the rows.
            at: (N,) indices, in all rows laid end to end, of the tokens whose logits to return.

        Returns:
            A scalar loss *sum* (divide by the count of valid targets over the whole batch), or
            logits (B, T, vocab_size), with ``at`` (N, vocab_size).
        """
        hidden = self.hidden(tokens, layout, carried)
        if targets is None:
            hidden = hidden if at is None else hidden.flatten(0, 1)[at]
            return capped(linear(hidden, self.head_weight), self.logit_softcap)
        return linear_cross_entropy(
            hidden.flatten(0, 1),
            self.head_weight,
            targets.flatten(),
            softcap=self.logit_softcap,
            z_loss=self.z_loss,
        )

    def hidden(
        self, tokens: Tensor, layout: Layout | None = None, carried: CarriedRows | None = None
    ) -> Tensor:
        """Return the final hidden states (B, T, d_model), before the head.

        Under autocast, the residual stream between the blocks is fp32, whatever precision an engine
        gathers the embedding in: bf16 would lose a block's small addition to a large sum
        (docs/gpu.md has the cost). Without autocast, it has the weights' precision.
        """
        layout = self._layout(tokens, layout)
        x = self._embedded(tokens)
        if self.position is not None:
            x = x + self.position(layout.positions)
        x = self.dropout(x)
        if carried is not None:
            layout = carried.layout(layout)
            for i, block in enumerate(self.blocks):
                x = block(x, layout, None, carried.of_block(i))
        else:
            for block in self.blocks:
                x = block(x, layout, self.context)
        return self.norm(x)

    def _embedded(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return x.float() if torch.is_autocast_enabled(x.device.type) else x

    def _layout(self, tokens: Tensor, layout: Layout | None) -> Layout:
        """Return ``layout``, or that of a plain stream, with the layers' rotary tables."""
        if layout is None:
            rows, length = tokens.shape
            if self.context is None:
                layout = Layout.stream(rows, length)
            else:
                whole = Layout.stream(rows, self.context.size * length)
                layout = whole.part(self.context.rank, self.context.size)
            layout = layout.to(tokens.device)
        return layout.turned(self.config.rotation(self.embedding.weight.dtype))

    def init_state(self, batch_size: int = 1) -> dict[str, Any]:
        """Return the state before the first token of ``batch_size`` texts."""
        weight = self.embedding.weight
        blocks = [b.init_state(batch_size, weight.device, weight.dtype) for b in self.blocks]
        return {"seen": 0, "blocks": blocks}

    def extend(self, tokens: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return the logits (B, vocab_size) after the next tokens (B, T), and the new state.

        A recurrent stack can go on past ``max_seq_len``: learned positions start over there, as
        they do at every training sequence. Attention cannot (:attr:`context_limit`).
        """
        seen, x = state["seen"], self._embedded(tokens)
        rows, length = tokens.shape
        layout = Layout.stream(rows, length, first=seen).to(tokens.device)
        layout = layout.turned(self.config.rotation(x.dtype))
        if self.position is not None:
            x = x + self.position(layout.positions % self.config.max_seq_len)
        states = []
        for block, block_state in zip(self.blocks, state["blocks"], strict=True):
            x, block_state = block.extend(x, block_state, layout)
            states.append(block_state)
        logits = linear(self.norm(x[:, -1]), self.head_weight)
        logits = capped(logits, self.logit_softcap)
        return logits, {"seen": seen + tokens.shape[1], "blocks": states}

    @property
    def head_weight(self) -> Tensor:
        """The matrix (vocab_size, d_model) whose products with hidden states are logits."""
        return (self.embedding if self.head is None else self.head).weight

    @property
    def logit_softcap(self) -> float:
        """The soft bound of the logits; 0: none."""
        return self.config.logit_softcap

    @property
    def context_limit(self) -> int | None:
        """The most tokens that a text may have in generation; None: no limit."""
        limited = any(block.layer.is_limited for block in self.blocks)
        return self.config.max_seq_len if limited and self.position is not None else None

    @property
    def reach(self) -> int | None:
        """The number of tokens that a prediction can depend on; None: all of the text so far."""
        reaches = [block.reach for block in self.blocks]
        known = [reach for reach in reaches if reach is not None]
        return 1 + sum(known) if len(known) == len(reaches) else None

    def flops_per_token(self, seq_len: int) -> float:
        """Return the forward FLOPs per token; a training step costs three times as many."""
        head = 2.0 * self.head_weight.numel()
        return head + sum(block.flops_per_token(seq_len) for block in self.blocks)

    def n_parameters(self) -> int:
        """Return the number of parameters; a tied head has none of its own."""
        return sum(p.numel() for p in self.parameters())


def outline(config: ModelConfig) -> LanguageModel:
    """Build the model without its weights (on the meta device): names, shapes, FLOPs."""
    with torch.device("meta"):
        return LanguageModel(config)


def build_model(
    config: ModelConfig, seed: int, device: torch.device | str = "cpu"
) -> LanguageModel:
    """Build a model with initial weights, drawn on the CPU so that all devices get the same."""
    model = outline(config).to_empty(device=device)
    initialise(model, config, seed)
    return model
