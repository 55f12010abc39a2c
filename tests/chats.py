"""Conversations to fine-tune on, and prepared sets of them."""

import json
import random
from pathlib import Path

import pytest

from gam_scale.data.pairs import Pairs
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.rows import Reading
from gam_scale.data.sources import parse_source
from gam_scale.data.tokenizer import Choice, Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer

WORDS = ("the", "old", "harbour", "was", "quiet", "that", "morning", "and", "nobody", "came")

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A template that names special tokens and marks answers with transformers' generation tag."""
SPECIAL = ["<|endoftext|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]


def byte_level(folder: Path) -> Tokenizer:
    """Return a tokenizer like GPT-2's, with chat tokens and ``<|eos|>`` as the end of text."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(["User: it is.\n\nAssistant: Is it?!\n" * 9], trainer)
    model.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder / "tokenizer.json", Choice(eos="<|eos|>"))


def row(i: int) -> dict:
    """Return row i: every third is a chat of two exchanges; a few others are far too long."""
    rng = random.Random(i)
    many = 2 + rng.randrange(8) + 200 * (i % 17 == 3)
    words = [rng.choice(WORDS) for _ in range(many)]
    if i % 3:
        return {"prompt": f"Number {i}?", "completion": " ".join(words)}
    turns = [("user", f"Say {i}."), ("assistant", "No."), ("user", "Why?"), ("assistant", "I.")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_rows(path: Path, count: int = 150) -> Path:
    """Write the first ``count`` rows as .jsonl."""
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(count)))
    return path


def spec_of(path: Path, out: Path, tokenizer: Path, seq_len: int, **options) -> PrepareSpec:
    """Return the spec that prepares a file of conversations, one in ten of them held out."""
    return PrepareSpec(
        out,
        [parse_source(str(path), "train", Reading(pairs=True))],
        tokenizer=tokenizer,
        **{"valid_fraction": 0.1, "pairs": Pairs(seq_len)} | options,
    )


def prepared_chats(folder: Path, tokenizer: Path, seq_len: int) -> Path:
    """Write rows, prepare them and return the prepared set's folder."""
    out = folder / "chats"
    prepare(spec_of(write_rows(folder / "pairs.jsonl"), out, tokenizer, seq_len))
    return out
