"""Test tokenizers in Hugging Face folders: the same ids in transformers, and read back."""

import json
import random
import sys

import pytest
from pieces import train_pieces

from gam_scale.data.tokenizer import Choice
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.export.sources import flat_sources
from gam_scale.export.tokenizer_files import TOKENIZATION, tokenizer_files, tokenizer_of

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXT = "The lamp is lit; naïve 漢字 text.\n\n    return 123\n" * 40
SAMPLES = [TEXT[:200], " a  b ", "a", "x\ufb01 e\u0301 \x00\U0001f9d0"]


def sentencepiece_model(folder):
    model = train_pieces(folder, TEXT.splitlines(), vocab_size=310, eos_id=2)
    return load_tokenizer(model, Choice(eos="</s>"))  # with a dummy prefix


def byte_level(folder):
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|eos|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT], trainer)
    model.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json", Choice(eos="<|eos|>"))


def ours_bpe(folder):
    return train_tokenizer([TEXT], folder / "m.model", 320)


def ours_unigram(folder):
    return train_tokenizer([TEXT], folder / "m.model", 280, "unigram")


MADE = [sentencepiece_model, byte_level, ours_bpe, ours_unigram]


def written(folder, tokenizer, **options):
    folder.mkdir()
    for name, content in tokenizer_files(tokenizer, **options).items():
        (folder / name).write_bytes(content)
    for name, source in flat_sources((TOKENIZATION,)).items():
        (folder / name).write_text(source)
    (folder / "config.json").write_text(json.dumps({"model_type": "gam_scale"}))
    return folder


def in_transformers(folder):
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


def fuzzed(count: int, pieces: list[str]):
    """Yield texts of pieces, runs of spaces and letters, control characters, emoji, scripts."""
    rng = random.Random(0)
    kinds = [
        lambda: rng.choice(pieces),
        lambda: (
            rng.choice([" ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u200b"]) * rng.randint(1, 9)
        ),
        lambda: chr(rng.choice([*range(32), *range(127, 160)])),
        lambda: rng.choice(SPELLED),
        lambda: rng.choice("ae0129.,;_=('") * rng.randint(1, 9),
        lambda: "".join(
            chr(rng.choice(SCRIPTS) + rng.randrange(90)) for _ in range(rng.randint(1, 6))
        ),
    ]
    for _ in range(count):
        yield "".join(rng.choice(kinds)() for _ in range(rng.randint(1, 40)))


SPELLED = [
    "😀",
    "👨‍👩‍👧",
    "🏳️‍🌈",
    "e\u0301",
    "\ufb01",
    "\u2581",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<|endoftext|>",
]
SCRIPTS = [
    0x20,
    0xA0,
    0x370,
    0x410,
    0x5B0,
    0x620,
    0x905,
    0xE01,
    0x1100,
    0x3041,
    0x4E00,
    0xAC00,
    0x1F300,
    0x20000,
    0xE000,
]


@pytest.mark.parametrize("made", MADE)
def test_the_same_ids_in_transformers_and_back(tmp_path, made):
    ours = made(tmp_path)
    folder = written(tmp_path / "folder", ours, longest=77)
    theirs = in_transformers(folder)
    assert theirs.is_fast == (made is not ours_unigram) and theirs.model_max_length == 77
    assert (theirs.bos_token_id, theirs.padding_side) == (ours.bos_id, "left")
    assert theirs.eos_token_id == (ours.bos_id if ours.eos_id is None else ours.eos_id)
    pieces = [ours.decode([i]) for i in range(258, ours.vocab_size)]
    for text in [*SAMPLES, *fuzzed(300, pieces)]:
        ids = theirs(text).input_ids
        assert ids == [ours.bos_id, *ours.encode(text)], text
        assert theirs.decode(ids, skip_special_tokens=True) == text
    back = load_tokenizer(*tokenizer_of(folder))
    assert (back.sha256, back.bos_id, back.eos_id) == (ours.sha256, ours.bos_id, ours.eos_id)
    assert load_tokenizer(folder).sha256 == ours.sha256, "no set for this model to train on with"


@pytest.mark.parametrize("made", MADE)
def test_what_transformers_saved_comes_back(tmp_path, made):
    """transformers saves only its own files; eos and the bytes of each id survive."""
    ours = made(tmp_path)
    in_transformers(written(tmp_path / "folder", ours)).save_pretrained(tmp_path / "saved")
    back = load_tokenizer(*tokenizer_of(tmp_path / "saved"))
    assert (back.bos_id, back.eos_id, back.exact) == (ours.bos_id, ours.eos_id, ours.exact)
    for text in [*SAMPLES, TEXT]:
        ids = ours.encode(text)
        assert back.encode(text) == ids and back.decode(ids) == text
    assert (back.token_bytes() == ours.token_bytes()).all()


@pytest.mark.parametrize("made", [sentencepiece_model, ours_bpe])
def test_offsets_say_where_a_token_stands(tmp_path, made):
    ours = made(tmp_path)
    theirs = in_transformers(written(tmp_path / "folder", ours))
    for text in fuzzed(30, ["lamp", " is"]):
        found = theirs(text, return_offsets_mapping=True, add_special_tokens=False)
        for token, (first, end) in zip(found.input_ids, found.offset_mapping, strict=True):
            bytes_ = ours.id_to_bytes(token)
            whole = text[first:end].encode()
            assert bytes_ == whole or (end - first == 1 and bytes_ in whole), (text, first, end)


def test_without_the_package_the_tokenizer_is_the_slow_one(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "tokenizer.json" not in tokenizer_files(ours_bpe(tmp_path))
