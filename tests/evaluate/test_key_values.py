"""Test key-value retrieval: reading the key is always right, copying any value is chance."""

import numpy as np
import pytest
import torch

from gam_scale.errors import UserError
from gam_scale.evaluate.hidden import HiddenSentences, chance_length, distinct_keys, pooled, words
from gam_scale.evaluate.interval import Interval, proportion
from gam_scale.evaluate.key_values import KeyValues, _row


def reader(tokenizer, whole_key: bool):
    """Return a stand-in that predicts the value which last followed the question's cue.

    With ``whole_key`` the cue includes the key; else the value of any key is copied.
    """
    hidden = HiddenSentences(tokenizer)
    between, before = hidden.between.tolist(), len(hidden.before)

    def last_log_probs(tokens):
        out = torch.full((len(tokens), tokenizer.vocab_size), -5.0)
        for row, ids in enumerate(tokens.tolist()):
            asked = ids[-2 - before - len(between) :] if whole_key else between
            ends = [i for i in range(len(asked), len(ids)) if ids[i - len(asked) : i] == asked]
            out[row, ids[ends[-1]]] = -1.0
        return out

    return last_log_probs


def test_the_key_decides(tokenizer, texts):
    settings = {"lengths": [120, 200], "pairs": [2, 4], "trials": 30, "candidates": 8}
    right = KeyValues(tokenizer, texts, **settings).ask(reader(tokenizer, True))
    assert [(c.length, c.pairs) for c in right.cells] == [(120, 2), (120, 4), (200, 2), (200, 4)]
    assert all(c.accuracy.mean == c.copied.mean == 1.0 for c in right.cells)
    assert right.chance_from == {2: None, 4: None}
    copies = KeyValues(tokenizer, texts, **settings).ask(reader(tokenizer, False))
    for c in copies.cells:
        assert c.copied.mean == 1.0 and c.accuracy.low < c.chance < c.accuracy.high
    assert copies.chance_from == {2: 120, 4: 120}


def test_a_text_holds_every_sentence_once_and_asks_for_the_first(tokenizer, texts):
    rng, pool = np.random.default_rng(0), np.array(words(tokenizer))
    hidden, keys = HiddenSentences(tokenizer), distinct_keys(rng, pool, 4, lambda: 2)
    values = rng.choice(pool, 6, replace=False)
    row = _row(rng, hidden, texts, 150, keys, values)
    text = tokenizer.decode(row[1:].tolist())
    assert row.shape == (150,) and row[0] == tokenizer.bos_id
    for key, value in zip(keys, values[:4], strict=True):
        assert text.count(tokenizer.decode(hidden.sentence(key, value).tolist())) == 1
    assert text.endswith(tokenizer.decode(hidden.cue(keys[0]).tolist()))


def test_what_cannot_be_asked(tokenizer, texts):
    with pytest.raises(UserError, match="pairs has .*; expected numbers from 2 to the 4"):
        KeyValues(tokenizer, texts, [90], [5], candidates=4).ask(reader(tokenizer, True))
    with pytest.raises(UserError, match="has 30, too few tokens for 4 sentences and a question"):
        KeyValues(tokenizer, texts, [30], [4], candidates=8).ask(reader(tokenizer, True))


def test_where_chance_begins():
    def at(low: float) -> Interval:
        return Interval(low + 0.1, low, low + 0.2)

    found = [(512, at(0.5)), (1024, at(0.01)), (2048, at(0.2)), (4096, at(0.0)), (8192, at(0.02))]
    assert chance_length(found, 0.05) == 4096
    assert chance_length(found[:3], 0.05) is None and chance_length(found[1:2], 0.05) == 1024


def test_a_trial_counts_once_however_many_depths_it_has():
    trial = [True, False, True, True, False, True, True, False]
    ((length, once),) = pooled([(64, trial)])
    ((_, again),) = pooled([(64, trial)] * 5)
    assert length == 64 and once.mean == again.mean == 5 / 8
    assert again.low == pytest.approx(once.low) and again.high == pytest.approx(once.high)
    assert once == proportion(np.array(trial, float), np.ones(8))
    ((_, whole),) = pooled([(64, [True] * 8)] * 5)
    assert whole == proportion(np.full(8, 5.0), np.full(8, 5.0)) and whole.low < 0.7
    (short, long) = pooled([(64, trial), (32, [False] * 8), (32, trial)])
    assert (short[0], short[1].mean, long[0]) == (32, 5 / 16, 64)
