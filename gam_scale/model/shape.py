"""What all layers of a model share, as far as a layer depends on it."""

from dataclasses import dataclass
from typing import Literal

WIDEST = 100_000
LONGEST = 100_000_000
"""Most that a size may be, across and along a sequence or a batch: more is a slip of the keyboard,
which would otherwise be found when memory runs out."""


@dataclass(frozen=True)
class Shape:
    """Of one model; a layer's own settings are in its configuration."""

    d_model: int
    dropout: float
    rotary: Literal["none", "attention", "all"]
    """Which layers turn their queries and keys by rotary positions."""
    context: int
    """Tokens of a text, up to which the horizons of gates reach where nothing else is said."""
    biases: bool
    """Whether linear layers, convolutions and norms have them."""
