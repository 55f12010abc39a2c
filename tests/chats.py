"""Conversations to fine-tune on, and prepared sets of them."""

import json
import random
from pathlib import Path

from gam_scale.data.pairs import Pairs
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.rows import Reading
from gam_scale.data.sources import parse_source

WORDS = ("the", "old", "harbour", "was", "quiet", "that", "morning", "and", "nobody", "came")


def row(i: int) -> dict:
    """The i-th; some have two turns, every 17th is far too long."""
    rng = random.Random(i)
    many = 2 + rng.randrange(8) + 200 * (i % 17 == 3)
    words = [rng.choice(WORDS) for _ in range(many)]
    if i % 3:
        return {"prompt": f"Number {i}?", "completion": " ".join(words)}
    turns = [("user", f"Say {i}."), ("assistant", "No."), ("user", "Why?"), ("assistant", "I.")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_rows(path: Path, count: int = 150) -> Path:
    """The first of them as .jsonl."""
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(count)))
    return path


def spec_of(path: Path, out: Path, tokenizer: Path, seq_len: int, **options) -> PrepareSpec:
    """How a set of a file of conversations is prepared, one in ten held out."""
    return PrepareSpec(
        out,
        [parse_source(str(path), "train", Reading(pairs=True))],
        tokenizer=tokenizer,
        **{"valid_fraction": 0.1, "pairs": Pairs(seq_len)} | options,
    )


def prepared_chats(folder: Path, tokenizer: Path, seq_len: int) -> Path:
    """A prepared set of them."""
    out = folder / "chats"
    prepare(spec_of(write_rows(folder / "pairs.jsonl"), out, tokenizer, seq_len))
    return out
