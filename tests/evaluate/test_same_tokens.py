"""Test losses of the same tokens after little and after much text."""

import numpy as np
import pytest
import torch

from gam_scale.errors import UserError
from gam_scale.evaluate.same_tokens import compare_spans, parse_spans
from gam_scale.model.loss import IGNORE

NEAR, FAR = (4, 8), (20, 40)


def windows(n=12, length=60, seed=0):
    """Return windows in which no id occurs twice, so that an id tells its position."""
    ids = np.random.default_rng(seed).permutation(n * length)
    return list(ids.reshape(n, length))


def test_every_token_is_read_with_a_context_of_each_span():
    """Tokens 20 to 39 of a window are targets twice: after all text, and after 4 to 8 tokens."""
    seen = {}

    def losses(batch):
        assert batch.layout.documents is None
        for row, targets in zip(batch.tokens, batch.targets, strict=True):
            for i in torch.nonzero(targets != IGNORE).flatten().tolist():
                seen.setdefault(int(targets[i]), []).append(row[: i + 1].tolist())
        return torch.ones(batch.targets.shape)

    found = compare_spans(losses, texts := windows(3), NEAR, FAR, tokens_per_batch=64)
    assert (found.sequences, found.tokens) == (3, 3 * 20)
    expected = [text[n] for text in texts for n in range(20, 40)]  # 4 groups of 5, without token 40
    assert sorted(seen) == sorted(expected)
    for text in texts:
        for n in range(20, 40):
            far, near = seen[text[n]]
            assert far == text[:n].tolist()
            k = 4 + (n - 20) % 5
            assert near == text[n - k : n].tolist()


def test_a_model_that_uses_its_context_is_told_from_one_that_does_not():
    """Tokens' difficulty varies by 1 nat, context is worth 0.01: pairing finds it exactly."""
    hard = torch.randn(12 * 60, generator=torch.Generator().manual_seed(0))

    def losses(worth):
        def of(batch):
            context = torch.arange(1, batch.tokens.shape[1] + 1)
            return hard[batch.targets.clamp(min=0)] - worth * (context > 10)

        return of

    uses, ignores = (compare_spans(losses(w), windows(), NEAR, FAR) for w in (0.01, 0.0))
    assert uses.change.high < -0.0099 < uses.near_loss.high
    assert uses.far_loss.mean - uses.near_loss.mean == pytest.approx(uses.change.mean)
    assert uses.near_loss.high - uses.near_loss.low > 0.1
    assert (ignores.change.low, ignores.change.high) == (0.0, 0.0)


@pytest.mark.parametrize(
    "text", ["", "5-9", "9-5:10-20", "5-9:9-20", "0-4:5-9", "a-b:c-d", "1-9:20-22"]
)
def test_spans_that_are_none(text):
    with pytest.raises(UserError, match="expected two ranges of tokens of context"):
        parse_spans(text)


def test_spans():
    assert parse_spans("128-256:2048-4096") == ((128, 256), (2048, 4096))
