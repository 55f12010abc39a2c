"""Models as small as they can be and still have of everything more than one."""

from typing import Any

from gam_scale.config import (
    AttentionConfig,
    GAMConfig,
    MambaConfig,
    MemoryConfig,
    ModelConfig,
)
from gam_scale.model.parts import MIXERS

VOCAB = 23
WHOLE = {
    "kind": "delta",
    "n_heads": 2,
    "n_value_heads": 4,
    "expand_v": 2.0,
    "max_beta": 2,
    "decay_start": "published",
    "conv_size": 4,
    "activation": "silu",
    "output_gate": "silu",
}
"""A memory with all of the recipe around it."""
BY_CHANNEL = {"kind": "gdn2", "n_heads": 2, "n_value_heads": 4, "expand_v": 2.0, "max_beta": 2}
"""The same, with gates of channels."""

PUBLISHED_RAVEN = {
    "kind": "raven",
    "paths": "global",
    "fusion": "sum",
    "activation": "silu",
    "qk_norm": "weighted",
    "score_scale": 1.0,
    "read_activation": "silu",
    "read_norm": "whole",
    "start": "zeros",
    "decay_start": "published",
    "router_noise": 1.0,
}
"""The settings that docs/memories.md has for the published layer."""


def small(*kinds: str | dict[str, Any], **settings: Any) -> ModelConfig:
    """A model of layers of these kinds or objects; ``settings`` beside or instead of those here."""
    usual = {
        "layers": [MIXERS.read(_narrow(kind), "layers") for kind in kinds],
        "n_layers": len(kinds),
        "d_model": 16,
        "vocab_size": VOCAB,
        "dropout": 0.0,
        "position": "none",
        "gam": GAMConfig(n_slots=6),
        "memory": MemoryConfig(n_heads=2, n_slots=6, top_k=2),
        "attention": AttentionConfig(n_heads=2),
        "mamba": MambaConfig(d_state=4, expand=2),
    }
    return ModelConfig(**usual | settings)


def _narrow(layer: str | dict[str, Any]) -> str | dict[str, Any]:
    """What a section says nothing of says itself how it is narrow."""
    if isinstance(layer, str) and not MIXERS[layer].sections:
        return {"kind": layer} | MIXERS[layer].small_settings
    return layer
