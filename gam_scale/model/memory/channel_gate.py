"""A decay gate for each channel of a head's keys."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.model.memory.gate import UNIT, DecayGate, Gate, exact
from gam_scale.model.memory.pairs import MIN_LOG_DECAY


class ChannelDecayGate(DecayGate):
    """Log decays per key channel, ``-rate_h softplus(W2 W1 h + b)`` (arXiv 2510.26692).

    The projection is of low rank; each head has a rate, and each of its channels a bias. Horizons
    are spread over heads as in a :class:`DecayGate`. No log decay is below
    :data:`~gam_scale.model.memory.pairs.MIN_LOG_DECAY`.

    Args:
        d_model: width of the input.
        n_heads: heads of keys.
        width: channels of each head.
        rank: rank of the projection.
        horizons: the shortest and the longest, in tokens.
        decays: whether weight decay applies to the projection's matrices.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        width: int,
        rank: int,
        horizons: tuple[float, float],
        *,
        decays: bool = False,
    ) -> None:
        super().__init__(rank, n_heads, horizons)
        self.down = Gate(d_model, rank, bias=False, decays=decays)
        self.strength = Gate(rank, n_heads * width, decays=decays)

    def forward(self, h: Tensor, top_k: int | None = None) -> Tensor:
        """(B, T, d) -> (B, T, heads, width), float32 whatever the parameters are."""
        assert top_k is None, "channels are not chosen from"
        with torch.autocast(h.device.type, enabled=False):
            rate = exact(self.log_rate).exp().mT  # (heads, 1)
            strength = F.softplus(self.strength(self.down(h)) + UNIT)
            return (-rate * strength.unflatten(-1, (len(rate), -1))).clamp(min=MIN_LOG_DECAY)
