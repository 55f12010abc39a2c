"""Test texts of associative recall: their keys, values, gaps and labels."""

import numpy as np
import pytest

from gam_scale.errors import UserError
from gam_scale.evaluate.tasks.recall import POWER, Recall, recall_batch
from gam_scale.model.loss import IGNORE

TASK = Recall(seq_len=64, vocab_size=128, pairs=6)


@pytest.mark.parametrize("task", [TASK, Recall(16, 64, 4), Recall(128, 8192, 8)])
@pytest.mark.parametrize("blank", [False, True])
def test_every_query_was_stated_once_and_its_label_is_its_value(task, blank):
    batch = recall_batch(task, 50, seed=3, blank=blank)
    stated, half = 2 * task.pairs, task.vocab_size // 2
    for tokens, targets in zip(batch.tokens.numpy(), batch.targets.numpy(), strict=True):
        keys, values = tokens[0:stated:2], tokens[1:stated:2]
        assert len(set(keys)) == len(set(values)) == task.pairs
        assert (keys >= 1).all() and (keys < half).all()
        assert (values >= half).all() and (values < task.vocab_size).all()
        asked = np.flatnonzero(targets != IGNORE)
        assert len(asked) == task.pairs and asked.min() >= stated and (asked % 2 == 0).all()
        value_of = dict(zip(keys, values, strict=True))
        assert [value_of[k] for k in tokens[asked]] == targets[asked].tolist()
        assert sorted(tokens[asked]) == sorted(keys)
        # No key stands anywhere else, so each question has one answer.
        assert np.isin(tokens, keys).sum() == 2 * task.pairs
        if blank:
            rest = np.setdiff1d(np.arange(stated, task.seq_len), asked)
            assert (tokens[rest] == 0).all()


def test_gaps_follow_the_power_law():
    """With one pair, its query's gap follows p(g) ~ (g + 1)^(a - 1) alone."""
    task, n = Recall(64, 64, 1), 20_000
    gaps = (recall_batch(task, n, seed=0).targets != IGNORE).int().argmax(1).numpy() // 2 - 1
    weights = np.arange(1, 32) ** (POWER - 1.0)
    expected = weights / weights.sum()
    seen = np.bincount(gaps, minlength=31) / n
    assert np.abs(seen - expected).max() < 4 * np.sqrt(0.25 / n)
    assert seen[0] > 10 * seen[20] > 0


def test_seeds():
    one, same, other = (recall_batch(TASK, 9, seed) for seed in (1, 1, 2))
    assert (one.tokens == same.tokens).all() and (one.targets == same.targets).all()
    assert not (one.tokens == other.tokens).all(dim=1).any()


def test_impossible_texts():
    with pytest.raises(UserError, match="expected an even length of at least 4 tokens a pair"):
        Recall(30, 256, 8)
    with pytest.raises(UserError, match="does not give 8 keys; expected an even number"):
        Recall(64, 16, 8)
    assert (TASK.chance, TASK.guess) == (1 / 64, 1 / 6)
