"""From a tokenizer and ids that others made to a trained model's text, by the command line."""

import json

import numpy as np
import pytest
from whole_runs import train

from gam_scale.checkpoint.load import load_trained
from gam_scale.data.manifest import read_manifest
from gam_scale.data.shards import TokenSplit
from gam_scale.generate import Sampling, generate

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [f"Document {i}: the lamp is lit, naïve. " * (3 + i % 5) for i in range(40)]


def test_prepare_train_generate(tmp_path, tool, tiny):
    """The tokenizer is a save_pretrained folder with separator 0; data is text and nanoGPT ids."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(TEXTS, trainer)
    (tmp_path / "gpt").mkdir()
    model.save(str(tmp_path / "gpt" / "tokenizer.json"))
    lines = [json.dumps({"title": "A", "text": text}) for text in [*TEXTS, TEXTS[0]]]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    ids = [i for text in TEXTS for i in [*model.encode(text).ids, 0]]
    np.array(ids, np.uint16).tofile(tmp_path / "train.bin")
    common = ("prepare_data", "--workers", 1, "--tokenizer", tmp_path / "gpt")
    filters = ("--deduplicate", "--min-chars", 50, "--template", "{text}")
    rows = ("--train", tmp_path / "rows.jsonl", "--out", tmp_path / "a")
    refused = tool(*common, *rows, "--eos", "x")
    assert refused.status == 2 and "has no special token 'x'; expected --eos as one" in refused.err
    done = tool(*common, *filters, *rows)
    assert done.status == 0, done.err
    header, row = done.out.splitlines()[:2]
    assert "repeated" in header and "short" not in header and " 1" in row
    done = tool(*common, "--train", tmp_path / "train.bin", "--out", tmp_path / "b")
    assert done.status == 0, done.err
    sets = [read_manifest(tmp_path / name) for name in "ab"]
    assert sets[0].tokenizer == sets[1].tokenizer
    text, brought = (sum(s.bytes for s in m.splits.values()) for m in sets)
    assert text == brought == sum(len(t.encode()) for t in TEXTS)
    run = tmp_path / "run"
    paths = [{"path": str(tmp_path / name)} for name in "ab"]
    train(tiny(run, data={"sets": paths}, train={"steps": 4, "warmup_steps": 1}))
    trained = load_trained(run)
    assert (trained.tokenizer.bos_id, trained.tokenizer.sha256) == (0, sets[0].tokenizer.sha256)
    written = "".join(generate(trained.model, trained.tokenizer, "The", 8, Sampling()))
    assert isinstance(written, str)


def test_ids_beyond_sixteen_bits_are_read_as_wide_as_the_tokenizers(tmp_path, tool):
    """The width is not given. Read as two 16-bit halves, id 70,000 would be two other ids."""
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {"<s>": 0} | {letter: i for i, letter in enumerate(sorted(letters), 1)}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary | {"zz": 70_000}, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(["<s>"])
    model.save(str(tmp_path / "tokenizer.json"))
    np.array([70_000, *range(1, 257), 0, 70_000], np.uint32).tofile(tmp_path / "a.bin")
    given = ("--tokenizer", tmp_path / "tokenizer.json", "--valid-fraction", 0, "--workers", 1)
    done = tool("prepare_data", "--train", tmp_path / "a.bin", "--out", tmp_path / "set", *given)
    assert done.status == 0, done.err
    split = TokenSplit(tmp_path / "set", "train", tmp_path / "cache")
    assert split.read(0, split.tokens).tolist() == [0, 70_000, *range(1, 257), 0, 70_000]
