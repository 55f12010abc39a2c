"""Test practice texts: what they ask for was said before, and the file can be prepared."""

import json
import re
from itertools import islice

import pytest

from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.shards import TokenSplit
from gam_scale.data.sources import parse_source
from gam_scale.errors import UserError
from gam_scale.evaluate.practice import Practice, practice_texts

SAID = re.compile(r"The magic word of ((?:\w+ ?)+?) is (\w+)\.")


@pytest.fixture(scope="module")
def split(tmp_path_factory, whole_words) -> TokenSplit:
    """Return a split of two documents, for which a dozen words are single ids."""
    folder = tmp_path_factory.mktemp("practice")
    for name in "ab":
        pairs = zip(whole_words * 20, (whole_words * 22)[5:], strict=False)
        (folder / f"{name}.txt").write_text(" ".join(f"{a} and {b}." for a, b in pairs))
    source = parse_source(str(folder / "*.txt"))
    prepare(PrepareSpec(folder / "set", [source], vocab_size=350, valid_fraction=0.1))
    return TokenSplit(folder / "set", "train", folder / "cache")


def test_a_text_ends_with_a_sentence_that_it_said_before(split):
    tokenizer = split.load_tokenizer()
    practice = Practice(shortest=150, longest=600, sentences=4)
    texts = list(islice(practice_texts(split, tokenizer, practice, seed=3), 80))
    assert texts == list(islice(practice_texts(split, tokenizer, practice, seed=3), 80))
    counts, words_of_keys, filled = set(), set(), []
    for text, tokens in texts:
        assert 149 <= tokens <= 601 and text.endswith(".") and len(tokenizer.encode(text)) > 100
        said = [(m[1], m[2], m.start()) for m in SAID.finditer(text)]
        values = {key: value for key, value, _ in said}
        assert all(values[key] == value for key, value, _ in said), "a key has two values"
        assert len(set(values.values())) == len(values)
        last = said[-1]
        assert last[0] in {key for key, _, _ in said[:-1]} and SAID.fullmatch(text[last[2] :])
        counts.add(len(values))
        words_of_keys |= {len(key.split()) for key in values}
        filled.append(sum(len(m[0]) for m in SAID.finditer(text)) / len(text))
    assert counts == {1, 2, 3, 4} and words_of_keys == {1, 2}
    assert min(filled) < 0.4 and max(filled) > 0.6


def test_what_cannot_be_hidden(split):
    tokenizer = split.load_tokenizer()
    for practice, said in (
        (Practice(shortest=20, sentences=4), "lengths are 20 to 1000 tokens; expected more than"),
        (Practice(300, 200, 4), "lengths are 300 to 200 .* the shorter first"),
        (Practice(sentences=500), "too few for 500 sentences; expected sentences of at most"),
        (Practice(9000, 9000, 1), "documents of .* too rarely"),
    ):
        with pytest.raises(UserError, match=said):
            next(practice_texts(split, tokenizer, practice))


def test_the_tool_writes_what_can_be_prepared(run_tool, split, tmp_path, capsys):
    out, asked = tmp_path / "new" / "hidden.jsonl", ["--data", split.path, "--tokens", 3000]
    sizes = ["--shortest", 200, "--longest", 300, "--sentences", 3]
    assert run_tool("hide_sentences", *asked, *sizes, "--out", out) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert f"{len(texts)} texts" in capsys.readouterr().out and len(texts) > 9
    assert run_tool("hide_sentences", *asked, *sizes, "--out", out) == 2
    assert "is there already; expected a new file" in capsys.readouterr().err
    folder = tmp_path / "set"
    tokenizer = ["--tokenizer", split.path, "--valid-fraction", 0.1]
    assert run_tool("prepare_data", "--train", out, *tokenizer, "--out", folder) == 0
    assert TokenSplit(folder, "train", tmp_path / "cache").tokens > 2000
