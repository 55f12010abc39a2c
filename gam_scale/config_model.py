"""Settings of the model; a part of :mod:`gam_scale.config`, through which all others read them."""

from dataclasses import dataclass
from typing import Literal

from gam_scale.strict import option, section

WIDEST = 100_000
LONGEST = 100_000_000
"""Most that a size may be, across and along a sequence or a batch: more is a slip of the keyboard,
which would otherwise be found when memory runs out."""


@dataclass
class GAMConfig:
    """The Gated Associative Memory block (arXiv 2509.00605)."""

    n_slots: int = option(512, "rows of each layer's memory bank", at_least=1, at_most=LONGEST)
    kernel_size: int = option(
        3, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST
    )
    fusion: Literal["gate", "sum"] = option(
        "gate", "how local and global paths join: learned sigmoid gates, or a plain sum"
    )
    paths: Literal["both", "local", "global"] = option(
        "both", "ablation: keep both paths, only the convolution, or only the memory"
    )


MemoryKind = Literal["static", "slot", "delta", "phase", "scan"]
LayerKind = Literal["static", "slot", "delta", "phase", "scan", "attention", "mamba"]


@dataclass
class MemoryConfig:
    """The memory of gam blocks: the paper's constant bank, or one that the context writes."""

    kind: MemoryKind = option(
        "static",
        "static: the paper's constant bank, gam.n_slots rows; slot: a gated bank of key and value "
        "rows; delta: the gated delta rule; phase: complex associations; scan: a gated average "
        "per channel (docs/memories.md compares them)",
    )
    n_heads: int = option(
        4,
        "slot, delta, phase: heads, each with a state of its own; divides d_model",
        at_least=1,
        at_most=WIDEST,
    )
    n_slots: int = option(64, "slot: rows of each head's state", at_least=1, at_most=LONGEST)
    gate: Literal["routed", "plain"] = option(
        "routed",
        "slot: which rows a token writes; routed: the top_k that a router chooses, the others keep "
        "what they hold; plain: all of them (Gated Slot Attention)",
    )
    top_k: int = option(
        16, "slot: rows a token writes with gate routed", at_least=1, at_most=LONGEST
    )
    min_horizon: float = option(
        16.0, "tokens over which the fastest gate forgets at initialisation", above=1
    )
    max_horizon: float = option(
        0.0,
        "the slowest one; those between are spread evenly in the logarithm, and a head alone has "
        "the middle; 0: data.seq_len",
        at_least=0,
    )

    def horizons(self, context: int) -> tuple[float, float]:
        """The fastest and the slowest gate's at initialisation, for texts of ``context`` tokens."""
        return self.min_horizon, self.max_horizon or max(self.min_horizon, float(context))


@dataclass
class AttentionConfig:
    """The paper's Transformer baseline (pre-norm, 4d feed-forward)."""

    n_heads: int = option(8, "attention heads; divides model.d_model", at_least=1, at_most=WIDEST)


@dataclass
class MambaConfig:
    """The Mamba-1 baseline (arXiv 2312.00752)."""

    d_state: int = option(16, "state size per channel", at_least=1, at_most=WIDEST)
    d_conv: int = option(4, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST)
    expand: int = option(3, "inner width as a multiple of model.d_model", at_least=1, at_most=1000)
    stack: Literal["residual", "paper"] = option(
        "residual",
        "residual: pre-norm residual blocks, as Mamba is used; paper: the bare blocks that the "
        "GAM paper's published baseline stacks, with neither residual connection nor norm",
    )


@dataclass
class ModelConfig:
    """The language model: embeddings, a stack of blocks, a final norm, a tied head."""

    block: Literal["gam", "attention", "mamba"] = option("gam", "which block the stack is made of")
    layers: list[LayerKind] = option(
        [],
        "a pattern of layer kinds, repeated over n_layers, a multiple of it: attention, mamba, or "
        "a gam block by its memory's kind; empty: all are of model.block, with memory.kind",
    )
    d_model: int = option(512, "width of the residual stream", at_least=1, at_most=WIDEST)
    n_layers: int = option(6, "blocks", at_least=1, at_most=10_000)
    ffn_mult: int = option(
        4, "feed-forward width as a multiple of d_model", at_least=1, at_most=1000
    )
    vocab_size: int = option(
        0,
        "rows of the embedding; 0: the tokenizer's, else at least the tokenizer's",
        at_least=0,
        at_most=LONGEST,
    )
    max_seq_len: int = option(
        256, "rows of the learned position embedding", at_least=1, at_most=LONGEST
    )
    position: Literal["learned", "none", "rotary"] = option(
        "learned",
        "learned absolute position embeddings (the paper's); none; or rotary, in attention and in "
        "memories with queries and keys (arXiv 2104.09864). Only learned ones limit the context",
    )
    rotary_base: float = option(
        10_000.0,
        "slowest rotary frequency, as tokens per radian; more for longer contexts",
        above=1,
    )
    dropout: float = option(
        0.1, "probability, after the embeddings and each branch", at_least=0, below=1
    )
    init: Literal["scaled", "paper"] = option(
        "scaled",
        "scaled: N(0, 0.02) embeddings, residual outputs shrunk with depth; paper: torch's "
        "defaults with N(0, 1) position embeddings, which drown the token embeddings",
    )
    gam: GAMConfig = section(GAMConfig, "settings of gam blocks")
    memory: MemoryConfig = section(MemoryConfig, "the memory of gam blocks")
    attention: AttentionConfig = section(AttentionConfig, "settings of attention blocks")
    mamba: MambaConfig = section(MambaConfig, "settings of mamba blocks")

    def horizons(self) -> tuple[float, float]:
        """Of the memories' gates; a run puts its own data.seq_len into memory.max_horizon."""
        return self.memory.horizons(self.max_seq_len)

    def layer_kinds(self) -> list[LayerKind]:
        """What each of the ``n_layers`` layers is."""
        pattern = self.layers or [self.memory.kind if self.block == "gam" else self.block]
        return [pattern[i % len(pattern)] for i in range(self.n_layers)]
