"""The smallest models that still have more than one of everything."""

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
"""A memory with all of the recipe around it: convolution, activation, output gate, ..."""
BY_CHANNEL = {"kind": "gdn2", "n_heads": 2, "n_value_heads": 4, "expand_v": 2.0, "max_beta": 2}
"""A memory of the same sizes whose gates are per channel."""

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
"""The settings of docs/memories.md that give Raven's published layer."""


def small(*kinds: str | dict[str, Any], **settings: Any) -> ModelConfig:
    """Return the config of a model with these layers; ``settings`` replace or add to the usual."""
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
    """Add its own small settings to a layer whose sizes no section of the config sets."""
    if isinstance(layer, str) and not MIXERS[layer].sections:
        return {"kind": layer} | MIXERS[layer].small_settings
    return layer
