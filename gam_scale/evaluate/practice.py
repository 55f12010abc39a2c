"""Texts to practise finding on: sentences hidden in real text and said again later in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gam_scale.data.order import derive_seed
from gam_scale.data.shards import TokenSplit
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.hidden import HiddenSentences, distinct_keys, inserted, words

FILL = 0.9
"""Share of a text that sentences take at most."""
TRIES = 100


@dataclass(frozen=True)
class Practice:
    """How long the texts are, and how much is hidden in them."""

    shortest: int = 40
    """Tokens."""
    longest: int = 1000
    """Tokens; lengths between the two are drawn evenly by their logarithm."""
    sentences: int = 32
    """Different ones in a text at most."""


def practice_texts(
    split: TokenSplit, tokenizer: Tokenizer, practice: Practice, seed: int = 0
) -> Iterator[tuple[str, int]]:
    """Texts without end, each with its tokens, that hide what :class:`Needles` asks for.

    Each has sentences ``The magic word of KEY is VALUE.`` with keys of one or two words and
    different values, at sentences' ends of real text: two of them or as many as fill most of it, of
    which few or many are different. The text ends, where evaluations ask, with one that was said
    before. What is learned on dense and short texts first helps with the sparse and long ones.

    Args:
        split: where real text comes from, one document of it in each text.
        tokenizer: its tokenizer.
        practice: lengths and numbers.
        seed: of all that is drawn.

    Raises:
        UserError: too few whole words in the tokenizer, lengths that hold no sentence, or documents
            shorter than the texts.
    """
    pool = np.array(words(tokenizer, practice.sentences + 1, "sentences"))
    hidden = HiddenSentences(tokenizer)
    size = len(hidden.sentence([0, 0], 0))
    if not 2 * size < practice.shortest <= practice.longest:
        raise UserError(
            f"lengths are {practice.shortest} to {practice.longest} tokens; expected more than "
            f"{2 * size}, the shorter first"
        )
    rng = np.random.default_rng(derive_seed(seed, "practice"))
    while True:
        low, high = np.log([practice.shortest, practice.longest])
        length = round(float(np.exp(rng.uniform(low, high))))
        mentions = max(2, int(rng.uniform(0, FILL) * length / size))
        most = min(practice.sentences, mentions // 2)
        values = rng.choice(pool, rng.integers(1, most, endpoint=True), replace=False)
        keys = distinct_keys(rng, pool, len(values), lambda: int(rng.integers(1, 3)))
        sentences = [hidden.sentence(key, value) for key, value in zip(keys, values, strict=True)]
        which = rng.integers(len(sentences), size=mentions)
        which[-1] = rng.choice(which[:-1])
        said = [sentences[i] for i in which]
        text = _real(rng, split, hidden, length - 1 - sum(map(len, said)))
        places = [hidden.place(text, share) for share in rng.uniform(size=mentions)]
        ids = inserted(text, [*sorted(places)[:-1], len(text)], said)
        yield tokenizer.decode(ids.tolist()).strip(), len(ids) + 1


def _real(
    rng: np.random.Generator, split: TokenSplit, hidden: HiddenSentences, length: int
) -> np.ndarray:
    """So many tokens of one document."""
    ends = [hidden.bos] if hidden.eos is None else [hidden.bos, hidden.eos]
    if length <= split.tokens:
        for _ in range(TRIES):
            ids = split.read(int(rng.integers(split.tokens - length + 1)), length)
            if not np.isin(ids, ends).any():
                return ids
    raise UserError(
        f"documents of {split.name} have {length:,} tokens too rarely; expected longer documents, "
        "or shorter texts"
    )
