"""A small prepared set of generated text, shared by the tests that train."""

import random
from pathlib import Path

import pytest

from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.sources import parse_source

TEXT = "the a cat dog bird tree sees likes finds under over near and then sleeps runs sings"
WORDS = TEXT.split()


def sentences(seed: int, count: int) -> str:
    """Repeatable nonsense with some structure: something for a small model to learn."""
    rng = random.Random(seed)
    lines = (" ".join(rng.choices(WORDS, k=rng.randint(4, 12))) + "." for _ in range(count))
    return "\n".join(lines)


@pytest.fixture(scope="session")
def prepared_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 24 documents of some hundred words each, with a vocabulary of 320."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(24):
        (folder / f"{i:02d}.txt").write_text(sentences(i, 20 + i))
    out = folder / "prepared"
    source = parse_source(str(folder / "*.txt"))
    prepare(PrepareSpec(out, [source], vocab_size=320, valid_fraction=0.1))
    return out
