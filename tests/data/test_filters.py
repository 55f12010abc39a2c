"""Each filter of a preparation leaves out what it should and counts it, alike in every pass."""

import numpy as np
import pytest

from gam_scale.data.documents import TokenIds
from gam_scale.data.filters import REPEATED, REPETITIVE, SHORT, Filters, Sieve, repetition
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source

WORDS = " ".join(f"word{i}" for i in range(100))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c d", 0.0),
        (WORDS, 0.0),
        (f"{WORDS} {WORDS}", 0.5),
        (f"{WORDS} x\ny {WORDS}", 100 / 202),
        ("a b c d e " * 10, 45 / 50),
        ("la " * 100, 99 / 100 - 4 / 100 + 4 / 100),
        (f"{WORDS} word7 word8 word9 word10", 0.0),  # four words are no phrase
        (f"{WORDS} word7 word8 word9 word10 word11", 5 / 105),
    ],
)
def test_repetition(text, share):
    assert repetition(text) == pytest.approx(share, abs=1e-9)


def test_sieve():
    sieve = Sieve(Filters(True, 3, 0.4))
    kept = list(sieve.kept("train", ["one", "no", "one", "two", f"{WORDS} {WORDS}", "one "]))
    kept += sieve.kept("valid", ["two", "three", TokenIds(np.array([1])), TokenIds(np.arange(2))])
    kept += sieve.kept("test", [TokenIds(np.array([1], np.uint32))])
    assert [k for k in kept if isinstance(k, str)] == ["one", "two", "one ", "three"]
    assert [k.ids.tolist() for k in kept if isinstance(k, TokenIds)] == [[1], [0, 1]]
    assert sieve.left_out == {
        "train": {SHORT: 1, REPEATED: 1, REPETITIVE: 1},
        "valid": {REPEATED: 1},
        "test": {REPEATED: 1},
    }


def test_a_set_counts_what_it_lacks(tmp_path):
    texts = [f"text {i} of the corpus" for i in range(40)]
    for i, text in enumerate([*texts, *texts[:7], "x", f"{WORDS} {WORDS}"]):
        (tmp_path / f"{i:02}.txt").write_text(text)
    train = [parse_source(str(tmp_path / "*.txt"))]
    filters = Filters(True, 2, 0.4)
    kept = prepare(PrepareSpec(tmp_path / "set", train, vocab_size=285, filters=filters))
    counts = {REPEATED: 7, SHORT: 1, REPETITIVE: 1}
    assert kept.splits["train"].left_out == counts
    assert kept.splits["valid"].left_out == {}
    for i in range(40, 49):
        (tmp_path / f"{i}.txt").unlink()
    train = [parse_source(str(tmp_path / "*.txt"))]
    alone = prepare(PrepareSpec(tmp_path / "alone", train, vocab_size=285))
    for name, split in alone.splits.items():
        assert split.shards == kept.splits[name].shards, "the set of the documents that are kept"
    assert "deduplicate" not in alone.source
