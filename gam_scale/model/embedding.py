"""Tables of rows: token and position embeddings, and a head that is not tied."""

from typing import ClassVar

from torch import Tensor, nn

from gam_scale.model.linear import linear
from gam_scale.model.policy import Policy, position_rows, token_rows


class TokenEmbedding(nn.Embedding):
    """A row for each token id; also the head's weight where the two are tied."""

    policy: ClassVar[dict[str, Policy]] = {"weight": Policy(token_rows, "embedding", "always")}


class PositionEmbedding(nn.Embedding):
    """A row for each position in a document."""

    policy: ClassVar[dict[str, Policy]] = {"weight": Policy(position_rows, "embedding", "always")}


class Head(nn.Linear):
    """A row for each token id, whose products with hidden states are logits."""

    policy: ClassVar[dict[str, Policy]] = {"weight": Policy(token_rows, "head", "always")}

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__(d_model, vocab_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_model) -> logits (..., vocab_size)."""
        return linear(x, self.weight)
