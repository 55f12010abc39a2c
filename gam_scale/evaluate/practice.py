"""Texts to practise retrieval on: sentences hidden in real text and repeated later in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gam_scale.data.order import derive_seed
from gam_scale.data.shards import TokenSplit
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.hidden import HiddenSentences, distinct_keys, inserted, words

FILL = 0.9
"""Largest share of a text that hidden sentences take."""
TRIES = 100


@dataclass(frozen=True)
class Practice:
    """How long the texts are, and how much is hidden in them."""

    shortest: int = 40
    """Tokens of the shortest text."""
    longest: int = 1000
    """Tokens of the longest text; the logarithms of lengths are drawn uniformly."""
    sentences: int = 32
    """Most different sentences in a text."""


def practice_texts(
    split: TokenSplit, tokenizer: Tokenizer, practice: Practice, seed: int = 0
) -> Iterator[tuple[str, int]]:
    """Yield, without end, texts that hide what :class:`Needles` asks for, and their token counts.

    Sentences ``The magic word of KEY is VALUE.``, with keys of one or two words and different
    values, are inserted at the ends of sentences of real text. Their number is drawn between two
    and as many as fill :data:`FILL` of the text; few or many of them are different, the others
    repeat. The last sentence, where evaluations ask, repeats an earlier one. Lengths and densities
    vary because what a model learns first, on short and dense texts, helps it with long and sparse
    ones.

    Args:
        split: source of the real text; each text is from one document.
        tokenizer: the split's tokenizer.
        practice: lengths and numbers.
        seed: seed of all draws.

    Raises:
        UserError: the tokenizer has too few whole words, the lengths are too short for sentences,
            or the documents are too short for the texts.
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
    """Draw ``length`` successive tokens from inside one document."""
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
