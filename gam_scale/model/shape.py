"""The settings that all layers of a model share and depend on."""

from dataclasses import dataclass
from typing import Literal

WIDEST = 100_000
LONGEST = 100_000_000
"""Upper limits of sizes across and along a sequence or a batch. A larger size is a typing error,
which would otherwise show only when memory runs out."""


@dataclass(frozen=True)
class Shape:
    """The shared settings of one model; a layer's own settings are in its configuration."""

    d_model: int
    dropout: float
    rotary: Literal["none", "attention", "all"]
    """Which layers turn their queries and keys by rotary positions."""
    context: int
    """Tokens of a text, the default of the longest horizon of gates."""
    biases: bool
    """Whether linear layers, convolutions and norms have biases."""
