"""The tokenizer is lossless and deterministic, and gives the ids of sentencepiece itself."""

import difflib
import inspect
import os
import random
import string
import textwrap

import numpy as np
import pytest
import sentencepiece as spm
from pieces import train_pieces

from gam_scale.data import sentencepiece_tokenizer, tokenizer_training
from gam_scale.data import tokenizer as t
from gam_scale.data.tokenizer import Choice
from gam_scale.data.tokenizer_file import load_tokenizer, read_tokenizer
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.errors import UserError

CODE = inspect.getsource(difflib) + inspect.getsource(textwrap)
PROSE = "".join(
    f"He didn't say: “{word} — {word[::-1]}!” In {1900 + i % 90}, café owners agreed.\n\n"
    for i, word in enumerate(["naïve", "wonder", "garden", "quiet", "letters"] * 60)
)
ODD = (
    "\u2581 \u2585 a\u2581b \x00 \t\t \r\n \ufeff \u2028 e\u0301 \ufb01 \U0010ffff <s> <unk> <0x41>"
)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer([CODE, PROSE], path, 450, request.param)


def random_texts(count, seed=0):
    """Return short random texts of characters and words that tokenizers stumble over."""
    rng = random.Random(seed)
    alphabet = [
        *ODD,
        *string.printable,
        "    ",
        "the",
        "return",
        "é",
        "漢",
        "🧐",
        " \u2581 ",
        "\n\n",
    ]
    return ["".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(count)]


def test_ids_and_type(tokenizer, request):
    assert tokenizer.vocab_size == 450
    assert (tokenizer.bos_id, tokenizer.dtype) == (1, "uint16")
    assert tokenizer.model_type == request.node.callspec.params["tokenizer"]


@pytest.mark.parametrize("text", ["", " ", "   ", "\n", "a", " a ", "a" * 5000, CODE, PROSE, ODD])
def test_lossless(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[np.array(ids, int)].sum() == len(text.encode())


def test_lossless_on_random_text(tokenizer):
    token_bytes = tokenizer.token_bytes()
    for text in random_texts(2000):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1} & set(ids)
        assert token_bytes[np.array(ids, int)].sum() == len(text.encode())


def test_word_by_word_equals_sentencepiece(tmp_path):
    # Byte pairs only: unigram may break a tie in another way on a longer text.
    tokenizer = train_tokenizer([CODE, PROSE], tmp_path / "tokenizer.model", 450)
    model = spm.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    for text in [CODE, PROSE, *random_texts(2000, seed=1)]:
        if t.SPACE not in text:  # sentencepiece itself takes it for a space
            assert tokenizer.encode(text) == model.encode(text)


def test_cache_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(sentencepiece_tokenizer, "CACHED_WORDS", 10)
    fresh = read_tokenizer(tokenizer.model_bytes)
    assert fresh.decode(fresh.encode(PROSE + "x" * 100)) == PROSE + "x" * 100
    assert len(fresh._words) <= 10
    assert "x" * 100 not in fresh._words


def test_decode_skips_special_ids(tokenizer):
    ids = tokenizer.encode("a b")
    assert tokenizer.decode([1, *ids, 0, 1]) == "a b"
    assert tokenizer.decode([]) == ""
    assert tokenizer.token_bytes()[[0, 1]].tolist() == [0, 0]
    assert tokenizer.decode([2 + 0xC3]) == "\ufffd"  # half a character


def test_digits_and_indentation(tokenizer):
    assert len(tokenizer.encode("1906")) == 4
    assert len(tokenizer.encode("        return")) < 6


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a \ud800 b")


def test_training_is_deterministic(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    first, second = (train_tokenizer([CODE, PROSE], path, 400, "unigram") for path in paths)
    assert first.sha256 == second.sha256
    assert paths[0].read_bytes() == paths[1].read_bytes() == first.model_bytes
    assert load_tokenizer(paths[0]).sha256 == first.sha256


def test_text_without_spaces_still_keeps_spaces(tmp_path):
    tokenizer = train_tokenizer(["漢字🧐" * 2000], tmp_path / "m", 262)
    assert tokenizer.decode(tokenizer.encode("漢 字  a")) == "漢 字  a"


def test_unknown_mark_does_not_drop_a_text(tmp_path):
    # The trainer silently skips a sentence with U+2585 in it.
    tokenizer = train_tokenizer(["\u2585 " + "lighthouse keeper " * 100], tmp_path / "m", 285)
    assert len(tokenizer.encode("lighthouse keeper" * 10)) < 100  # letter by letter: 170


def test_sample_is_bounded_seeded_and_in_order():
    texts = [f"{i:04d}" * 2000 for i in range(50)]  # 8000 characters, two pieces each
    everything = list(tokenizer_training._sample(texts, max_bytes=1 << 20))
    assert "".join(everything) == "".join(texts)
    sample = list(tokenizer_training._sample(texts, max_bytes=100_000))
    assert 90_000 < sum(map(len, sample)) <= 100_000
    assert sample == list(tokenizer_training._sample(iter(texts), max_bytes=100_000))
    places = iter(everything)
    assert all(piece in places for piece in sample)  # a subsequence
    assert len({piece[:4] for piece in sample}) > 15  # from all over the text


@pytest.mark.parametrize(
    ("texts", "vocab_size", "reason"),
    [
        (["hello world " * 100], 1000, r"vocabulary of 1000 is too large.* at most 287 "),
        (["hello world " * 100], 259, r"vocabulary of 259 is too small.* at least 260"),
        (["hello world " * 100], 10, "too small"),
        ([], 300, "no text"),
        ([""], 300, "no text"),
    ],
)
def test_vocabulary_that_does_not_fit(tmp_path, texts, vocab_size, reason):
    with pytest.raises(UserError, match=reason):
        train_tokenizer(texts, tmp_path / "m", vocab_size)
    assert not list(tmp_path.iterdir())


def test_character_coverage_is_sentencepieces_own(tmp_path):
    texts = ["hello world " * 100]
    with pytest.raises(UserError, match=r"vocabulary of 260 is too small.* at least 266: .*--char"):
        train_tokenizer(texts, tmp_path / "m", 260, character_coverage=1.0)
    rare = ["the lighthouse keeper " * 500 + "ж"]
    sizes = {
        coverage: len(
            train_tokenizer(rare, tmp_path / "m", 280, "bpe", 1 << 20, coverage).encode("ж")
        )
        for coverage in (None, 0.99, 1.0)
    }
    assert sizes == {None: 2, 0.99: 2, 1.0: 1}


@pytest.mark.parametrize("vocab_size", [260, 300, 32_000])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_more_characters_than_the_vocabulary_has_room_for(tmp_path, vocab_size, model_type, capsys):
    """Like a web crawl, the text has very many kinds of characters, 38,640, most of them rare."""
    kinds = [chr(i) for i in range(0x3400, 0x20000) if chr(i).isprintable()][:38_640]
    common = "".join(random.Random(0).choices(kinds[:3000], k=20_000)) + "hello world " * 500
    texts = ["".join(kinds), common]
    tokenizer = train_tokenizer(texts, tmp_path / "m", vocab_size, model_type)
    assert tokenizer.vocab_size == vocab_size
    assert tokenizer.decode(tokenizer.encode(common + kinds[-1])) == common + kinds[-1]
    assert "38,647 kinds of characters" in capsys.readouterr().err
    if (vocab_size, model_type) == (32_000, "bpe"):
        assert len(tokenizer.encode(kinds[5])) == 1, "a common character without a piece"
        assert len(tokenizer.encode("hello")) < 5, "no room was left for longer pieces"


CHINESE = "".join(random.Random(1).choices([chr(i) for i in range(0x4E00, 0x4E80)], k=60_000))


@pytest.mark.parametrize("text", [CHINESE, CHINESE.replace("\u4e00", "。\u2581\n"), CODE * 3])
def test_a_long_text_is_cut_where_its_ids_stay_the_same(tmp_path, monkeypatch, text):
    """Text without spaces is one word, and sentencepiece takes 60 bytes for each byte of a word."""
    tokenizer = train_tokenizer([text], tmp_path / "m", 800)
    whole = tokenizer.encode(text)
    monkeypatch.setattr(t, "STRETCH_CHARS", 500)
    parts = list(tokenizer.stretches(text))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 1000 < len(text) / 10, "a part without bounds"
    assert tokenizer.encode(text) == whole
    assert [i for part in parts for i in tokenizer.encode(part)] == whole


@pytest.mark.parametrize("text", ["a" * 50_000, "漢字" * 30_000, " " * 10_000 + "\n" * 10_000])
def test_a_long_text_without_any_place_to_cut_is_bounded_and_lossless(tmp_path, monkeypatch, text):
    tokenizer = train_tokenizer([text, CODE], tmp_path / "m", 400)
    monkeypatch.setattr(t, "STRETCH_CHARS", 500)
    assert max(map(len, tokenizer.stretches(text))) <= 1000, "a part without bounds"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_largest_vocabulary_is_accepted(tmp_path):
    assert train_tokenizer(["hello world " * 100], tmp_path / "m", 287).vocab_size == 287


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x00" * 1000])
def test_load_refuses_other_files(tmp_path, data):
    with pytest.raises(UserError, match="no such file"):
        load_tokenizer(tmp_path / "m")
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(UserError, match="not a sentencepiece model"):
        load_tokenizer(tmp_path / "m")


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m")
    with pytest.raises(UserError, match="is a named pipe"):
        load_tokenizer(tmp_path / "m")


def model_of_others(folder, **options):
    """Train a sentencepiece model with other options than ours, and return its path."""
    settings = dict(
        add_dummy_prefix=False,
        required_chars=t.SPACE,
        unk_id=0,
        bos_id=1,
        eos_id=-1,
        vocab_size=400,
    )
    return train_pieces(folder, [CODE[:4000], PROSE[:2000]] * 3, **settings | options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"normalization_rule_name": "nmt_nfkc"}, "comes back as"),
        ({"remove_extra_whitespaces": True}, "comes back as"),
        ({"byte_fallback": False}, "comes back as"),
        ({"bos_id": -1}, "no special token that opens a document; expected --bos"),
    ],
)
def test_models_that_lose_text_are_taken_if_asked(tmp_path, options, reason):
    path = model_of_others(tmp_path, **options)
    with pytest.raises(UserError, match=reason):
        load_tokenizer(path)
    if "bos_id" not in options:
        taken = load_tokenizer(path, Choice(lossy=True))
        assert not taken.exact
        assert read_tokenizer(taken.model_bytes).sha256 == taken.sha256
        ids, text = taken.encode(PROSE), taken.decode(taken.encode(PROSE))
        known = text.replace(" \u2047 ", "")  # how sentencepiece shows an unknown piece
        assert taken.token_bytes()[ids].sum() == len(known.encode())


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": True},
        {"split_by_whitespace": False},
        {"split_by_unicode_script": False},
        {"unk_id": 1, "bos_id": 0},
        {"unk_id": 3, "bos_id": 2, "eos_id": 1, "pad_id": 0, "user_defined_symbols": ["<user>"]},
    ],
)
def test_models_of_others(tmp_path, monkeypatch, options):
    model = load_tokenizer(model_of_others(tmp_path, **options))
    theirs = spm.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert model.exact
    assert model.bos_id == options.get("bos_id", 1)
    again = read_tokenizer(model.model_bytes)
    assert (again.sha256, again.bos_id, again.eos_id) == (model.sha256, model.bos_id, None)
    monkeypatch.setattr(t, "STRETCH_CHARS", 500)
    prefix = options.get("add_dummy_prefix", False)
    for text in [CODE, PROSE, ODD, *random_texts(300)]:
        ids = model.encode(text)
        assert again.encode(text) == ids
        assert model.decode(ids) == text
        assert model.token_bytes()[np.array(ids, int)].sum() == len(text.encode())
        # With a dummy prefix, their ids of "a" are ours of " a". A lone space cannot be compared:
        # sentencepiece puts no prefix before an empty text.
        if t.SPACE not in text and not (prefix and (text[:1] != " " or text == " ")):
            assert ids == theirs.encode(text[1:] if prefix else text)


def test_special_tokens_by_name(tmp_path):
    path = model_of_others(tmp_path, eos_id=2)
    model = load_tokenizer(path, Choice(bos="</s>", eos="<s>"))
    assert (model.bos_id, model.eos_id, model.ends) == (2, 1, {1, 2})
    again = read_tokenizer(model.model_bytes)
    assert (again.bos_id, again.eos_id) == (2, 1)
    with pytest.raises(
        UserError, match="no special token the; expected --eos as one of: <s>, </s>"
    ):
        load_tokenizer(path, Choice(eos="the"))
    assert load_tokenizer(path).bos_id == 1
    assert load_tokenizer(path).eos_id is None
