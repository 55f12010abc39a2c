"""The short form of a stack: kinds by name, with settings from sections that kinds share.

``model.block`` and ``model.memory.kind`` name one kind for all layers, ``model.layers`` a pattern
of them. A layer that is an object in ``model.layers`` has its own settings and none of these.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gam_scale.errors import UserError
from gam_scale.model.gam import GAMLayer, horizons
from gam_scale.model.parts import MIXERS, MixerConfig
from gam_scale.model.shape import LONGEST, WIDEST
from gam_scale.strict import option, shown

GAM = "gam"
"""What model.block calls the layers whose memory model.memory.kind says."""

MEMORIES = [kind for kind in MIXERS if issubclass(MIXERS[kind], GAMLayer)]
BLOCKS = [GAM, *(kind for kind in MIXERS if kind not in MEMORIES)]


def _one_of(choices: list[str], default: str, doc: str) -> Any:
    def read(value: Any, where: str) -> str:
        if value not in choices:
            named = ", ".join(f'"{choice}"' for choice in choices)
            raise UserError(f"{where} is {shown(value)}; expected one of {named}")
        return value

    return option(default, doc, read=read, type_name=" | ".join(f'"{c}"' for c in choices))


def block_option(doc: str) -> Any:
    """A field that names a block for all layers, ``gam`` by default."""
    return _one_of(BLOCKS, GAM, doc)


def memory_option(doc: str) -> Any:
    """A field that names a memory for all gam layers, the paper's by default."""
    return _one_of(MEMORIES, "static", doc)


@dataclass
class GAMConfig:
    """Of gam layers named by their kind (arXiv 2509.00605)."""

    n_slots: int = option(512, "static: rows of the memory bank", at_least=1, at_most=LONGEST)
    kernel_size: int = option(
        3, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST
    )
    fusion: Literal["gate", "local", "sum"] = option(
        "gate",
        "how local and global paths join; gate: a learned sigmoid gate each; local: one on the "
        "local path, where the memory has an output gate of its own; sum: none",
    )
    paths: Literal["both", "local", "global"] = option(
        "both", "ablation: keep both paths, only the convolution, or only the memory"
    )


@dataclass
class MemoryConfig:
    """The memory of gam layers named by their kind: a constant bank, or one the context writes."""

    kind: str = memory_option(
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
        return horizons(self.min_horizon, self.max_horizon, context)


@dataclass
class AttentionConfig:
    """Of attention layers named by their kind, the paper's Transformer baseline."""

    n_heads: int = option(8, "attention heads; divides model.d_model", at_least=1, at_most=WIDEST)
    n_kv_heads: int = option(
        0,
        "heads of keys and values, each for as many heads of queries (grouped queries); divides "
        "n_heads; 0: n_heads",
        at_least=0,
        at_most=WIDEST,
    )
    window: int = option(
        0,
        "tokens that a token sees, itself included; 0: all of its document",
        at_least=0,
        at_most=LONGEST,
    )
    qk_norm: bool = option(
        False, "bring each head's queries and keys to unit size, with weights, before they meet"
    )


@dataclass
class MambaConfig:
    """Of mamba layers named by their kind (Mamba-1, arXiv 2312.00752)."""

    d_state: int = option(16, "state size per channel", at_least=1, at_most=WIDEST)
    d_conv: int = option(4, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST)
    expand: int = option(3, "inner width as a multiple of model.d_model", at_least=1, at_most=1000)
    stack: Literal["residual", "paper"] = option(
        "residual",
        "residual: pre-norm residual blocks, as Mamba is used; paper: the bare blocks that the "
        "GAM paper's published baseline stacks, with neither residual connection nor norm",
    )


def layer_of(kind: str, sections: Mapping[str, Any]) -> MixerConfig:
    """The layer that a kind alone stands for, with what the sections say of it."""
    return MIXERS[kind](
        **{
            name: getattr(sections[section], name)
            for name, section in _origins(kind, sections).items()
        }
    )


def key_of(kind: str, setting: str, sections: Mapping[str, Any]) -> str:
    """Where such a layer's setting is to be found in the model's section."""
    section = _origins(kind, sections).get(setting)
    return f"model.{section}.{setting}" if section else f"{kind}'s {setting}"


def _origins(kind: str, sections: Mapping[str, Any]) -> dict[str, str]:
    """The section that each setting of a kind is taken from."""
    names = {field.name for field in dataclasses.fields(MIXERS[kind])} - {"kind"}
    return {
        field.name: section
        for section in MIXERS[kind].sections
        for field in dataclasses.fields(sections[section])
        if field.name in names
    }
