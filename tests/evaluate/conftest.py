"""Fixtures: small models, a stand-in that predicts by a known rule, a tokenizer and texts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gam_scale.config import AttentionConfig, GAMConfig, ModelConfig
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel, build_model


@pytest.fixture
def small_model() -> Callable[..., LanguageModel]:
    """Return a function: ``small_model("attention", n_layers=3)`` is untrained, in eval mode."""

    def make(block: str = "gam", **changes) -> LanguageModel:
        settings = {"d_model": 16, "n_layers": 2, "vocab_size": 31, "position": "none"} | changes
        config = ModelConfig(
            block=block,
            gam=GAMConfig(n_slots=8),
            attention=AttentionConfig(n_heads=2),
            **settings,
        )
        model = build_model(config, seed=1).eval()
        for parameter in model.parameters():  # predictions far from uniform, so that losses differ
            parameter.data.mul_(3.0)
        return model

    return make


class Table(nn.Module):
    """A stand-in for a model: ``rule(tokens)`` gives its logits (B, T, vocab_size) directly."""

    logit_softcap = 0.0

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


LINE = "cat dog bird tree house river stone light storm bread glass horse paper queen"
WORDS = LINE.split()


@pytest.fixture(scope="session")
def whole_words() -> list[str]:
    """Return words that are single ids of a small tokenizer trained on them."""
    return WORDS


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """Return a tokenizer of 350 ids, a dozen of which are whole words."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer([f" {word}. The magic word of is" for word in WORDS] * 9, path, 350)


@pytest.fixture(scope="session")
def texts(tokenizer) -> list[np.ndarray]:
    """Return two equal documents of short sentences, each with its bos first."""
    lines = "".join(
        f" {a} and {b}{stop}" for a, b, stop in zip(WORDS, WORDS[3:], ".!" * 9, strict=False)
    )
    ids = tokenizer.encode(lines * 9)
    return [np.array([tokenizer.bos_id, *ids], np.int64)] * 2
