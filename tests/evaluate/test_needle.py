"""Test the needle: a model that copies always finds it, one that guesses finds it by chance."""

import numpy as np
import pytest
import torch

from gam_scale.errors import UserError
from gam_scale.evaluate.hidden import CUE, HiddenSentences, words
from gam_scale.evaluate.needle import Needles, _Question

LENGTHS, DEPTHS = (40, 60), (0.0, 0.5, 1.0)
V = 350


def copier(reach: int):
    """Return a model that predicts what followed the last two tokens before, within ``reach``."""

    def last_log_probs(tokens):
        out = torch.full((len(tokens), V), -5.0)
        for row, ids in enumerate(tokens.tolist()):
            for i in range(len(ids) - 3, max(1, len(ids) - reach), -1):
                if ids[i - 1 : i + 1] == ids[-2:]:
                    out[row, ids[i + 1]] = -1.0
                    break
        return out

    return last_log_probs


def test_words_are_whole_and_the_tokenizers_own(tokenizer):
    found = words(tokenizer)
    assert len(found) >= 8
    for token in found:
        text = tokenizer.decode([token])
        assert text[0] == " " and text[1:].isalpha() and len(text) >= 4
        assert list(tokenizer.encode(text)) == [token]


def test_a_model_that_copies_scores_one_everywhere(tokenizer, texts):
    result = Needles(tokenizer, texts, LENGTHS, DEPTHS, trials=5, candidates=6).ask(copier(999))
    assert [(c.length, c.depth) for c in result.cells] == [(n, d) for n in LENGTHS for d in DEPTHS]
    for cell in result.cells:
        assert (cell.accuracy.mean, cell.rank, cell.trials) == (1.0, 1.0, 5)
        assert cell.gain.mean == cell.gain.low == 4.0  # from -5 without the needle to -1
    assert result.chance == 1 / 6


def test_a_short_memory_loses_what_is_deep(tokenizer, texts):
    result = Needles(tokenizer, texts, [60], [0.0, 1.0], trials=5, candidates=6).ask(copier(25))
    deep, near = result.cells
    assert (near.accuracy.mean, near.gain.mean) == (1.0, 4.0)
    assert (deep.accuracy.mean, deep.gain.mean) == (0.0, 0.0)  # ties count as wrong


def test_guessing_is_at_chance(tokenizer, texts):
    generator = torch.Generator().manual_seed(0)

    def guess(tokens):
        return torch.log_softmax(torch.randn(len(tokens), V, generator=generator), -1)

    (cell,) = Needles(tokenizer, texts, [40], [0.5], trials=300, candidates=4).ask(guess).cells
    assert cell.accuracy.low < 0.25 < cell.accuracy.high
    assert cell.gain.low < 0 < cell.gain.high
    assert cell.rank == pytest.approx(2.5, abs=0.25)


def test_rows_differ_in_the_needle_only(tokenizer, texts):
    ask = _Question(tokenizer, words(tokenizer), candidates=5)
    rows, choices = ask.rows(np.random.default_rng(0), texts, 60, DEPTHS)
    again, _ = ask.rows(np.random.default_rng(0), texts, 60, DEPTHS)
    assert (rows == again).all() and rows.shape == (4, 60) and len(set(choices)) == 5
    assert (rows[:, 0] == tokenizer.bos_id).all()
    decoded = [tokenizer.decode(row) for row in rows.tolist()]
    key = decoded[-1].split(CUE[0])[1].removesuffix(CUE[1])
    sentence = f"{CUE[0]}{key}{CUE[1]}{tokenizer.decode([choices[0]])}."
    without = {text.replace(sentence, "", 1) for text in decoded[:3]}
    assert len(without) == 1 and all(sentence in text for text in decoded[:3])
    assert sentence not in decoded[3] and decoded[3].endswith(f"{CUE[0]}{key}{CUE[1]}")
    places = [text.index(sentence) for text in decoded[:3]]
    assert places == sorted(places) and places[0] == 0
    assert decoded[2].endswith(f"{sentence}{CUE[0]}{key}{CUE[1]}")
    assert decoded[1][places[1] - 1] in ".!"  # between two sentences


def test_what_cannot_be_asked(tokenizer, texts):
    def run(**changes):
        settings = {"lengths": [60], "depths": [0.5], "candidates": 4} | changes
        Needles(tokenizer, texts, **settings).ask(copier(9))

    with pytest.raises(UserError, match="ids that are whole words, too few for 300 candidates"):
        run(candidates=300)
    with pytest.raises(UserError, match="lengths has 9, too few tokens for .* expected"):
        run(lengths=[9])
    with pytest.raises(UserError, match="depths has .* expected shares from 0 to 1"):
        run(depths=[1.5])


def test_no_text_is_closed_before_its_question(tokenizer, texts, monkeypatch):
    """If an id closes documents, a haystack as long as its document must not end in that id."""
    eos = 3
    monkeypatch.setattr(tokenizer, "eos_id", eos)
    ids = texts[0][texts[0] != eos]
    hidden, rng = HiddenSentences(tokenizer), np.random.default_rng(0)
    text = hidden.text(rng, [np.append(ids, eos)], len(ids) - 1)
    assert np.array_equal(text, ids[1:])
