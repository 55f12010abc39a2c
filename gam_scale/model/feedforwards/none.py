"""No feed-forward network: the mixer is the whole layer, as Mamba has it."""

from dataclasses import dataclass
from typing import Literal

from gam_scale.model.parts import FEED_FORWARDS, FeedForwardConfig
from gam_scale.model.shape import Shape


@FEED_FORWARDS.register
@dataclass(frozen=True)
class NoFeedForwardConfig(FeedForwardConfig):
    """None, and one norm in the layer instead of two."""

    kind: Literal["none"] = "none"

    def build(self, shape: Shape) -> None:
        """See :meth:`FeedForwardConfig.build`."""
        return
