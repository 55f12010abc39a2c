"""Models as small as they can be and still have of everything more than one."""

from typing import Any

from gam_scale.config import (
    AttentionConfig,
    GAMConfig,
    MambaConfig,
    MemoryConfig,
    ModelConfig,
)

VOCAB = 23


def small(*kinds: str, **settings: Any) -> ModelConfig:
    """A model of layers of these kinds; ``settings`` beside or instead of those here."""
    usual = {
        "layers": list(kinds),
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
