"""Settings of the model: what all layers share, and the pattern of layers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from gam_scale.errors import UserError
from gam_scale.model.gam import check_horizons
from gam_scale.model.parts import (
    FEED_FORWARDS,
    MIXERS,
    NORMS,
    FeedForwardConfig,
    MixerConfig,
    NormConfig,
)
from gam_scale.model.rotary import Rotation
from gam_scale.model.shape import LONGEST, WIDEST, Shape
from gam_scale.model.short_form import (
    GAM,
    AttentionConfig,
    GAMConfig,
    MambaConfig,
    MemoryConfig,
    block_option,
    key_of,
    layer_of,
)
from gam_scale.strict import option, section, shown


def _read_layers(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{where} is {shown(value)}; expected a list of kinds or objects")
    return [MIXERS.read(each, f"{where}[{i}]") for i, each in enumerate(value)]


_MULT = 4
_ROTARY: dict[str, Literal["all", "attention"]] = {
    "rotary": "all",
    "rotary_attention": "attention",
}


@dataclass
class ModelConfig:
    """The language model: embeddings, a stack of layers, a final norm, a head."""

    block: str = block_option("which block the stack is made of")
    layers: list[Any] = option(
        [],
        "a pattern of layers, repeated over n_layers, a multiple of it: each a kind, with settings "
        "from the sections below, or an object with a kind and settings of its own, such as "
        '{"kind": "delta", "n_heads": 12}; empty: all are of model.block, with memory.kind',
        read=_read_layers,
        type_name="list of kinds or objects",
    )
    d_model: int = option(512, "width of the residual stream", at_least=1, at_most=WIDEST)
    n_layers: int = option(6, "blocks", at_least=1, at_most=10_000)
    ffn_mult: int = option(
        _MULT,
        "feed-forward width as a multiple of d_model, of networks that are named by their kind",
        at_least=1,
        at_most=1000,
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
    position: Literal["learned", "none", "rotary", "rotary_attention"] = option(
        "learned",
        "learned absolute position embeddings (the paper's); none; rotary, in attention and in "
        "memories with queries and keys (arXiv 2104.09864); or rotary_attention, in attention "
        "alone. Only learned ones limit the context",
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
    ffn: Any = option(
        "mlp",
        "the feed-forward network of layers whose own ffn says nothing: a kind, as wide as "
        'ffn_mult says, or an object such as {"kind": "swiglu", "mult": 4}. A mamba or mamba2 '
        "layer has one only where its own ffn says so",
        read=FEED_FORWARDS.read,
        type_name=" | ".join(f'"{kind}"' for kind in FEED_FORWARDS) + " or an object",
    )
    norm: Any = option(
        "layernorm",
        "the norm before the head, and of layers that name none: a kind, or an object",
        read=NORMS.read,
        type_name=" | ".join(f'"{kind}"' for kind in NORMS) + " or an object",
    )
    biases: bool = option(
        True, "biases in linear layers, convolutions and LayerNorms; gates of memories keep theirs"
    )
    tied_head: bool = option(
        True, "the head's weight is the token embedding's; false: it has one of its own"
    )
    logit_softcap: float = option(
        0.0,
        "bound of the logits, c tanh(logits / c) (arXiv 2408.00118, with 30); 0: none",
        at_least=0,
    )
    gam: GAMConfig = section(GAMConfig, "settings of gam blocks")
    memory: MemoryConfig = section(MemoryConfig, "the memory of gam blocks")
    attention: AttentionConfig = section(AttentionConfig, "settings of attention blocks")
    mamba: MambaConfig = section(MambaConfig, "settings of mamba blocks")

    @property
    def shape(self) -> Shape:
        """What the layers share."""
        return Shape(
            d_model=self.d_model,
            dropout=self.dropout,
            rotary=_ROTARY.get(self.position, "none"),
            context=self.max_seq_len,
            biases=self.biases,
        )

    @property
    def pattern(self) -> list[str | MixerConfig]:
        """What repeats over the layers: kinds, or layers with settings of their own."""
        return self.layers or [self.memory.kind if self.block == GAM else self.block]

    def stack(self) -> list[MixerConfig]:
        """The ``n_layers`` layers, each complete: the one place where the pattern is read."""
        layers = [self._layer(entry) for entry in self.pattern]
        return [layers[i % len(layers)] for i in range(self.n_layers)]

    def layer_kinds(self) -> list[str]:
        """What each of the ``n_layers`` layers is."""
        return [layer.kind for layer in self.stack()]

    def key(self, layer: int, setting: str) -> str:
        """What a setting of a layer, by its number from 0, is called in the config."""
        return self._named()[layer % len(self.pattern)][1](setting)

    def final_norm(self) -> NormConfig:
        """The norm before the head, and of layers that name none."""
        return NORMS.of(self.norm)

    def rotation(self, dtype: torch.dtype = torch.float32) -> Rotation | None:
        """What the layers turn by; None if none does. Tables are of float32 or, for it, float64."""
        shape = self.shape
        widths = sorted({w for layer in self.stack() for w in layer.turned_widths(shape)})
        if not widths:
            return None
        wide = torch.promote_types(dtype, torch.float32)
        return Rotation(self.rotary_base, tuple(widths), wide)

    def at_length(self, seq_len: int) -> "ModelConfig":
        """This model in a run on sequences of ``seq_len`` tokens: with horizons that follow it."""
        _, longest = self.memory.horizons(seq_len)
        own = [e if isinstance(e, str) else e.at_length(seq_len) for e in self.layers]
        return replace(self, layers=own, memory=replace(self.memory, max_horizon=longest))

    def check(self) -> None:
        """Refuse a model that cannot be built.

        Raises:
            UserError: naming the keys and what would do.
        """
        if self.n_layers % len(self.pattern):
            raise UserError(
                f"model.n_layers is {self.n_layers}, which is no multiple of the "
                f"{len(self.pattern)} kinds in model.layers; expected a multiple of "
                f"{len(self.pattern)}, since the pattern is repeated whole"
            )
        self._check_mult()
        for entry, (layer, name) in zip(self.pattern, self._named(), strict=True):
            layer.check(self.shape, name)
            if not isinstance(entry, str):
                entry.check_own(name)
            for key in ("ffn", "norm"):
                is_own = not isinstance(entry, str) and getattr(entry, key) is not None
                where = name(key) if is_own else f"model.{key}"
                getattr(layer, key).check(self.shape, f"{where}.{{}}".format)
        self.final_norm().check(self.shape, "model.norm.{}".format)
        memory = self.memory
        check_horizons(memory.min_horizon, memory.max_horizon, "model.memory.min_horizon")

    def check_length(self, tokens: int, cut: str) -> None:
        """Refuse sequences too short for a layer; see :meth:`MixerConfig.check_length`."""
        for layer, name in self._named():
            layer.check_length(tokens, cut, name)

    def _layer(self, entry: str | MixerConfig) -> MixerConfig:
        layer = layer_of(entry, self._sections) if isinstance(entry, str) else entry
        ffn, norm = (
            getattr(self if getattr(layer, key) is None else layer, key) for key in ("ffn", "norm")
        )
        return replace(layer, ffn=self._as_wide(ffn), norm=NORMS.of(norm))

    def _as_wide(self, value: str | FeedForwardConfig) -> FeedForwardConfig:
        """The feed-forward network; one named by its kind is as wide as ffn_mult says."""
        ffn: Any = FEED_FORWARDS.of(value)
        takes_mult = isinstance(value, str) and hasattr(ffn, "mult")
        return replace(ffn, mult=self.ffn_mult) if takes_mult else ffn

    def _check_mult(self) -> None:
        """Refuse a width that feed-forward networks with settings of their own do not take."""
        if self.ffn_mult == _MULT:
            return
        where = "" if isinstance(self.ffn, str) else "model.ffn"
        if not any(isinstance(e, str) or isinstance(e.ffn, str | None) for e in self.pattern):
            where = "every ffn in model.layers"
        if where:
            raise UserError(
                f"model.ffn_mult is {self.ffn_mult} beside {where}, with settings of its own; "
                f"expected its mult there, or ffn_mult {_MULT}"
            )

    def _named(self) -> list[tuple[MixerConfig, Callable[[str], str]]]:
        """The pattern's layers, each with what its settings are called in the config."""
        return [
            (
                self._layer(entry),
                partial(key_of, entry, sections=self._sections)
                if isinstance(entry, str)
                else f"model.layers[{i}].{{}}".format,
            )
            for i, entry in enumerate(self.pattern)
        ]

    @property
    def _sections(self) -> dict[str, Any]:
        return {
            "gam": self.gam,
            "memory": self.memory,
            "attention": self.attention,
            "mamba": self.mamba,
        }
