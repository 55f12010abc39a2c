"""Tokenizers that others made, in a Hugging Face folder: the same ids there, and back."""

import json

import pytest
import sentencepiece as spm

from gam_scale.data.tokenizer import Choice
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.export.sources import flat_sources
from gam_scale.export.tokenizer_files import TOKENIZATION, tokenizer_files, tokenizer_of

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

TEXT = "The lamp is lit; naïve 漢字 text.\n\n    return 123\n" * 40
SAMPLES = [TEXT[:200], " a  b ", "a", "x\ufb01 e\u0301 \x00\U0001f9d0"]


def sentencepiece_model(folder):
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(folder / "m"),
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        eos_id=2,
        minloglevel=2,
    )
    return load_tokenizer(folder / "m.model", Choice(eos="</s>"))  # with a dummy prefix


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


@pytest.mark.parametrize("made", [sentencepiece_model, byte_level])
def test_the_same_ids_in_transformers_and_back(tmp_path, made):
    ours, folder = made(tmp_path), tmp_path / "folder"
    folder.mkdir()
    for name, content in tokenizer_files(ours).items():
        (folder / name).write_bytes(content)
    for name, source in flat_sources((TOKENIZATION,)).items():
        (folder / name).write_text(source)
    (folder / "config.json").write_text(json.dumps({"model_type": "gam_scale"}))
    load = dict(trust_remote_code=True)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, **load)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    for text in SAMPLES:
        ids = theirs(text).input_ids
        assert ids == [ours.bos_id, *ours.encode(text)]
        assert theirs.decode(ids, skip_special_tokens=True) == text
    back = load_tokenizer(tokenizer_of(folder))
    assert (back.sha256, back.bos_id, back.eos_id) == (ours.sha256, ours.bos_id, ours.eos_id)
    if made is byte_level:
        theirs.save_pretrained(tmp_path / "saved")
        saved = load_tokenizer(tokenizer_of(tmp_path / "saved"))
        assert (saved.bos_id, saved.encode(TEXT)) == (ours.bos_id, ours.encode(TEXT))
