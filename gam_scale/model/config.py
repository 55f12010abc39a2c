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
        "pattern of layers, repeated until there are n_layers, a multiple of its length; each is a "
        "kind, with settings from the sections below, or an object with a kind and its own "
        'settings, such as {"kind": "delta", "n_heads": 12}; empty: all layers are model.block, '
        "with memory.kind",
        read=_read_layers,
        type_name="list of kinds or objects",
    )
    d_model: int = option(512, "width of the residual stream", at_least=1, at_most=WIDEST)
    n_layers: int = option(6, "number of layers (blocks)", at_least=1, at_most=10_000)
    ffn_mult: int = option(
        _MULT,
        "feed-forward width as a multiple of d_model, for networks given by their kind alone",
        at_least=1,
        at_most=1000,
    )
    vocab_size: int = option(
        0,
        "rows of the embedding, at least as many as the tokenizer has ids; 0: exactly as many",
        at_least=0,
        at_most=LONGEST,
    )
    max_seq_len: int = option(
        256,
        "rows of the learned position embedding, at least data.seq_len",
        at_least=1,
        at_most=LONGEST,
    )
    position: Literal["learned", "none", "rotary", "rotary_attention"] = option(
        "learned",
        "learned: absolute position embeddings, as in the paper; none: no positions; rotary: "
        "rotary positions in attention and in memories with queries and keys (arXiv 2104.09864); "
        "rotary_attention: the same in attention alone. Only learned positions limit the context",
    )
    rotary_base: float = option(
        10_000.0,
        "base of rotary positions: tokens per radian of the slowest frequency; raise it for longer "
        "contexts",
        above=1,
    )
    dropout: float = option(
        0.1,
        "dropout probability, after the embeddings and each branch, and on attention weights",
        at_least=0,
        below=1,
    )
    init: Literal["scaled", "paper"] = option(
        "scaled",
        "initial weights; scaled: embeddings from N(0, 0.02), outputs to the residual stream "
        "shrunk with depth; paper: torch's defaults, and position embeddings from N(0, 1), which "
        "drown the token embeddings",
    )
    ffn: Any = option(
        "mlp",
        "feed-forward network of layers without an ffn of their own: a kind, whose width follows "
        'from ffn_mult, or an object such as {"kind": "swiglu", "mult": 4}. mamba and mamba2 '
        "layers have a network only if their own ffn says so",
        read=FEED_FORWARDS.read,
        type_name=" | ".join(f'"{kind}"' for kind in FEED_FORWARDS) + " or an object",
    )
    norm: Any = option(
        "layernorm",
        "norm before the head and in layers without a norm of their own: a kind, or an object with "
        "settings",
        read=NORMS.read,
        type_name=" | ".join(f'"{kind}"' for kind in NORMS) + " or an object",
    )
    biases: bool = option(
        True,
        "whether linear layers, convolutions and LayerNorms have biases; gates of memories keep "
        "theirs",
    )
    tied_head: bool = option(
        True, "the head shares the weight of the token embedding; false: it has its own"
    )
    logit_softcap: float = option(
        0.0,
        "bound c on the logits, which become c tanh(logits / c) (arXiv 2408.00118, with 30); 0: no "
        "bound",
        at_least=0,
    )
    gam: GAMConfig = section(GAMConfig, "settings of gam blocks")
    memory: MemoryConfig = section(MemoryConfig, "the memory of gam blocks")
    attention: AttentionConfig = section(AttentionConfig, "settings of attention blocks")
    mamba: MambaConfig = section(MambaConfig, "settings of mamba blocks")

    @property
    def shape(self) -> Shape:
        """The settings that all layers share."""
        return Shape(
            d_model=self.d_model,
            dropout=self.dropout,
            rotary=_ROTARY.get(self.position, "none"),
            context=self.max_seq_len,
            biases=self.biases,
        )

    @property
    def pattern(self) -> list[str | MixerConfig]:
        """The pattern that the stack repeats: kinds, or layers with settings of their own."""
        return self.layers or [self.memory.kind if self.block == GAM else self.block]

    def stack(self) -> list[MixerConfig]:
        """Return the ``n_layers`` layers, each complete; only here is the pattern repeated."""
        layers = [self._layer(entry) for entry in self.pattern]
        return [layers[i % len(layers)] for i in range(self.n_layers)]

    def layer_kinds(self) -> list[str]:
        """Return the kind of each of the ``n_layers`` layers."""
        return [layer.kind for layer in self.stack()]

    def key(self, layer: int, setting: str) -> str:
        """Return the config key of a setting of the layer with this number, counted from 0."""
        return self._named()[layer % len(self.pattern)][1](setting)

    def final_norm(self) -> NormConfig:
        """Return the norm before the head, which is also that of layers that name none."""
        return NORMS.of(self.norm)

    def rotation(self, dtype: torch.dtype = torch.float32) -> Rotation | None:
        """Return the rotary tables that the layers need; None if no layer is rotary.

        They are float32, or float64 for a float64 ``dtype``.
        """
        shape = self.shape
        widths = sorted({w for layer in self.stack() for w in layer.turned_widths(shape)})
        if not widths:
            return None
        wide = torch.promote_types(dtype, torch.float32)
        return Rotation(self.rotary_base, tuple(widths), wide)

    def at_length(self, seq_len: int) -> "ModelConfig":
        """Return the model for sequences of ``seq_len`` tokens; max_horizon 0 becomes seq_len."""
        _, longest = self.memory.horizons(seq_len)
        own = [e if isinstance(e, str) else e.at_length(seq_len) for e in self.layers]
        return replace(self, layers=own, memory=replace(self.memory, max_horizon=longest))

    def check(self) -> None:
        """Refuse a model that cannot be built.

        Raises:
            UserError: with the keys and what would be accepted.
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

    def check_length(self, tokens: int, reason: str) -> None:
        """Refuse sequences too short for a layer; see :meth:`MixerConfig.check_length`."""
        for layer, name in self._named():
            layer.check_length(tokens, reason, name)

    def _layer(self, entry: str | MixerConfig) -> MixerConfig:
        layer = layer_of(entry, self._sections) if isinstance(entry, str) else entry
        ffn, norm = (
            getattr(self if getattr(layer, key) is None else layer, key) for key in ("ffn", "norm")
        )
        return replace(layer, ffn=self._as_wide(ffn), norm=NORMS.of(norm))

    def _as_wide(self, value: str | FeedForwardConfig) -> FeedForwardConfig:
        """Return the feed-forward network; one named by its kind gets its width by ffn_mult."""
        ffn: Any = FEED_FORWARDS.of(value)
        return replace(ffn, mult=self.ffn_mult) if _takes_mult(value) else ffn

    def _check_mult(self) -> None:
        """Refuse ``ffn_mult`` where no layer takes its feed-forward network's width from it."""
        if not self.layers and isinstance(self.ffn, str):  # blocks without a network ignore it
            return
        layers = [layer_of(e, self._sections) if isinstance(e, str) else e for e in self.pattern]
        networks = [self.ffn if layer.ffn is None else layer.ffn for layer in layers]
        if self.ffn_mult != _MULT and not any(map(_takes_mult, networks)):
            raise UserError(
                f"model.ffn_mult is {self.ffn_mult}, which no layer takes: their feed-forward "
                "networks have settings of their own, or there is none; expected mult in those "
                f"settings (model.ffn, or ffn in model.layers), or ffn_mult {_MULT}"
            )

    def _named(self) -> list[tuple[MixerConfig, Callable[[str], str]]]:
        """Return the pattern's layers, each with a function from a setting to its config key."""
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


def _takes_mult(network: str | FeedForwardConfig) -> bool:
    """Return whether a network is named by a kind alone that has a ``mult``."""
    return isinstance(network, str) and hasattr(FEED_FORWARDS.of(network), "mult")
