"""Test loss by position: known losses come out in their bins."""

import numpy as np
import pytest
import torch

from gam_scale.data.packing import IGNORE, make_batch
from gam_scale.errors import UserError
from gam_scale.evaluate.by_position import loss_by_position, octaves


def batches(lengths, seq_len=16, documents="concatenate", seed=0):
    rng = np.random.default_rng(seed)
    for n in lengths:
        yield make_batch([rng.integers(2, 9, n + 1)], seq_len, 1, documents)


def test_octaves_cover_every_length_once():
    assert octaves(15) == [(1, 1), (2, 3), (4, 7), (8, 15)]
    assert octaves(24)[-2:] == [(8, 15), (16, 24)]
    assert octaves(16)[-1] == (8, 16)  # position 16 gets no bin of its own
    assert octaves(11, 2) == [(1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11)]
    for longest in (1, 2, 100, 4096):
        for per_octave in (1, 2, 4):
            spans = octaves(longest, per_octave)
            covered = [n for first, last in spans for n in range(first, last + 1)]
            assert covered == list(range(1, longest + 1))


def test_a_loss_known_at_every_position_comes_out_in_its_bins():
    """Token t of sequence s costs 10 s + t + 1, so each bin's mean follows from its positions."""

    def losses(batch):
        nats = torch.arange(1.0, 17.0).expand(batch.tokens.shape) + 10 * next(number)
        return torch.where(batch.targets == IGNORE, 0.0, nats)

    number = iter(range(9))
    spans = [(1, 1), (2, 3), (4, 7), (8, 15), (16, 16)]
    found = loss_by_position(losses, batches([16, 16, 16, 5]), spans)
    assert [b.tokens for b in found.bins] == [4, 8, 14, 24, 3]
    assert [b.sequences for b in found.bins] == [4, 4, 4, 3, 3]
    # Sequences 0 to 2 reach all bins; sequence 3, which costs 30 more, has positions 1 to 5.
    third = (sum(4 * 5.5 + 4 * 10 * s for s in range(3)) + 4 + 5 + 2 * 30) / 14
    expected = [1 + 15, 2.5 + 15, third, 11.5 + 10, 16 + 10]
    assert [b.loss.mean for b in found.bins] == pytest.approx(expected)
    assert all(b.loss.low <= b.loss.mean <= b.loss.high for b in found.bins)


def test_context_starts_anew_with_each_document():
    row = np.array([1, 5, 5, 5, 1, 5, 5, 5, 5])
    batch = make_batch([row], 8, 1, "reset")
    found = loss_by_position(lambda b: torch.ones(1, 8), [batch], [(1, 1), (2, 4), (5, 8)])
    assert [b.tokens for b in found.bins] == [2, 6, 0]
    assert found.bins[2].loss is None


def test_no_text_is_a_mistake():
    with pytest.raises(UserError, match="holds no sequence"):
        loss_by_position(lambda batch: torch.ones(1, 16), [], octaves(16))
