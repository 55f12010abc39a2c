"""Small models, and stand-ins for models whose behaviour is known exactly."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gam_scale.config import AttentionConfig, GAMConfig, ModelConfig
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model


@pytest.fixture
def small_model() -> Callable[..., LanguageModel]:
    """``small_model("attention", n_layers=3)``: untrained, in evaluation mode."""

    def make(block: str = "gam", **changes) -> LanguageModel:
        settings = {"d_model": 16, "n_layers": 2, "vocab_size": 31, "position": "none"} | changes
        config = ModelConfig(
            block=block,
            gam=GAMConfig(n_slots=8),
            attention=AttentionConfig(n_heads=2),
            **settings,
        )
        model = build_model(config, seed=1).eval()
        for parameter in model.parameters():  # far from uniform predictions, so that losses differ
            parameter.data.mul_(3.0)
        return model

    return make


class Table(nn.Module):
    """Predicts by rule: ``rule(tokens)`` gives the logits (B, T, vocab_size) themselves."""

    def __init__(self, vocab_size: int, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, vocab_size)
        self.embedding.weight.data = torch.eye(vocab_size)
        self.rule = rule

    @property
    def head_weight(self) -> nn.Parameter:
        return self.embedding.weight

    def hidden(self, tokens: Tensor, layout: Layout | None = None) -> Tensor:
        return self.rule(tokens)


@pytest.fixture
def by_rule() -> type[Table]:
    return Table
