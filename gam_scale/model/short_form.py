"""The short form of a stack: kinds by name, with settings from sections that kinds share.

``model.block`` and ``model.memory.kind`` name one kind for all layers, ``model.layers`` a pattern
of kinds. A layer that is an object in ``model.layers`` has its own settings, none from sections.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gam_scale.errors import UserError
from gam_scale.model.gam import GAMLayer, horizons
from gam_scale.model.parts import MIXERS, MixerConfig
from gam_scale.strict import option, shown

GAM = "gam"
"""The value of model.block for layers whose memory model.memory.kind selects."""

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
    """Declare a field that names a block for all layers, ``gam`` by default."""
    return _one_of(BLOCKS, GAM, doc)


def memory_option(doc: str) -> Any:
    """Declare a field that names a memory for all gam layers, the paper's by default."""
    return _one_of(MEMORIES, "static", doc)


def _as_in(kind: str, setting: str) -> Any:
    """Declare a field as a copy of a kind's own setting.

    Its doc starts with the memories, if any, that take the setting from the kind's last section.
    """
    metadata, default = _field(kind, setting)
    section = MIXERS[kind].sections[-1]
    having = [each for each in MEMORIES if _takes(each, setting, section, metadata)]
    opening = f"{', '.join(having)}: " if having else ""
    doc = opening + metadata["doc"]
    return dataclasses.field(default=default, metadata={**metadata, "doc": doc})


def _takes(kind: str, setting: str, section: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether layers of ``kind`` take this setting, with this meaning, from ``section``."""
    is_read = section in MIXERS[kind].sections and setting not in MIXERS[kind].not_from_sections
    return is_read and _field(kind, setting)[0] == metadata


def _field(kind: str, setting: str) -> tuple[Mapping[str, Any], Any]:
    """Return the metadata and default of a kind's setting; ``({}, None)`` if it has none."""
    fields = {field.name: field for field in dataclasses.fields(MIXERS[kind])}
    return (fields[setting].metadata, fields[setting].default) if setting in fields else ({}, None)


@dataclass
class GAMConfig:
    """Settings of gam layers named by their kind (arXiv 2509.00605)."""

    n_slots: int = _as_in("static", "n_slots")
    kernel_size: int = _as_in("static", "kernel_size")
    fusion: Literal["gate", "local", "sum"] = _as_in("static", "fusion")
    paths: Literal["both", "local", "global"] = _as_in("static", "paths")


@dataclass
class MemoryConfig:
    """The memory of gam layers named by their kind: a constant bank, or one the context writes."""

    kind: str = memory_option(
        "static: constant bank of gam.n_slots rows, as in the paper; slot: gated bank of key and "
        "value rows; raven: large bank of which a token writes few rows; delta: gated delta rule; "
        "gdn, kda, gdn2, gam_delta: recipes around it; phase: complex associations; scan: gated "
        "average per channel (docs/memories.md compares them)",
    )
    n_heads: int = _as_in("delta", "n_heads")
    n_slots: int = _as_in("slot", "n_slots")
    gate: Literal["routed", "plain"] = _as_in("slot", "gate")
    top_k: int = _as_in("slot", "top_k")
    min_horizon: float = _as_in("scan", "min_horizon")
    max_horizon: float = _as_in("scan", "max_horizon")

    def horizons(self, context: int) -> tuple[float, float]:
        """Return the shortest and longest initial horizon, for texts of ``context`` tokens."""
        return horizons(self.min_horizon, self.max_horizon, context)


@dataclass
class AttentionConfig:
    """Settings of attention layers named by their kind, the paper's Transformer baseline."""

    n_heads: int = _as_in("attention", "n_heads")
    n_kv_heads: int = _as_in("attention", "n_kv_heads")
    window: int = _as_in("attention", "window")
    qk_norm: bool = _as_in("attention", "qk_norm")


@dataclass
class MambaConfig:
    """Settings of mamba layers named by their kind (Mamba-1, arXiv 2312.00752)."""

    d_state: int = _as_in("mamba", "d_state")
    d_conv: int = _as_in("mamba", "d_conv")
    expand: int = _as_in("mamba", "expand")
    stack: Literal["residual", "paper"] = _as_in("mamba", "stack")


def layer_of(kind: str, sections: Mapping[str, Any]) -> MixerConfig:
    """Return the layer that a kind alone stands for, with its settings from the sections."""
    return MIXERS[kind](
        **{
            name: getattr(sections[section], name)
            for name, section in _origins(kind, sections).items()
        }
    )


def key_of(kind: str, setting: str, sections: Mapping[str, Any]) -> str:
    """Return the config key of such a layer's setting, or its description if it has no key."""
    section = _origins(kind, sections).get(setting)
    return f"model.{section}.{setting}" if section else f"{kind}'s {setting}"


def _origins(kind: str, sections: Mapping[str, Any]) -> dict[str, str]:
    """Return the section from which each setting of a kind is taken."""
    names = {field.name for field in dataclasses.fields(MIXERS[kind])} - {"kind"}
    names -= set(MIXERS[kind].not_from_sections)
    return {
        field.name: section
        for section in MIXERS[kind].sections
        for field in dataclasses.fields(sections[section])
        if field.name in names
    }
