"""No feed-forward network: the mixer is the whole layer, as in Mamba."""

from dataclasses import dataclass
from typing import Literal

from gam_scale.model.parts import FEED_FORWARDS, FeedForwardConfig
from gam_scale.model.shape import Shape


@FEED_FORWARDS.register
@dataclass(frozen=True)
class NoFeedForwardConfig(FeedForwardConfig):
    """No feed-forward network, which leaves the layer one norm instead of two."""

    kind: Literal["none"] = "none"

    def build(self, shape: Shape) -> None:
        """See :meth:`FeedForwardConfig.build`."""
        return
