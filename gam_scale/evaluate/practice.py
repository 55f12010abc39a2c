"""Texts to practise finding on: sentences hidden in real text and said again later in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gam_scale.data.order import derive_seed
from gam_scale.data.shards import TokenSplit
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.hidden import HiddenSentences, words

MENTIONS = 3
"""Times a sentence is said at most; every time but the first asks for its value."""
TRIES = 100


@dataclass(frozen=True)
class Practice:
    """How long the texts are, and how much is hidden in them."""

    shortest: int = 100
    """Tokens."""
    longest: int = 1000
    """Tokens; lengths between the two are drawn evenly by their logarithm."""
    sentences: int = 12
    """Different ones in a text at most; fewer where they would take more than half of it."""


def practice_texts(
    split: TokenSplit, tokenizer: Tokenizer, practice: Practice, seed: int = 0
) -> Iterator[tuple[str, int]]:
    """Texts without end, each with its tokens, that hide what :class:`Needles` asks for.

    Each has sentences ``The magic word of KEY is VALUE.`` with keys of one or two words and
    different values, each said two or three times, at sentences' ends of real text. One is said
    again at the text's end, where evaluations ask. Distances between mentions are short and long
    alike, so that a model finds the near ones first.

    Args:
        split: where real text comes from, one document of it in each text.
        tokenizer: its tokenizer.
        practice: lengths and numbers.
        seed: of all that is drawn.

    Raises:
        UserError: too few whole words in the tokenizer, lengths that hold no sentence, or documents
            shorter than the texts.
    """
    pool, hidden = np.array(words(tokenizer, practice.sentences + 1)), HiddenSentences(tokenizer)
    room = 2 * MENTIONS * len(hidden.sentence([0, 0], 0))  # sentences fill half of it
    if not room <= practice.shortest <= practice.longest:
        raise UserError(
            f"lengths are {practice.shortest} to {practice.longest} tokens; expected {room} or "
            "more, the shorter first"
        )
    rng = np.random.default_rng(derive_seed(seed, "practice"))
    while True:
        length = _log_uniform(rng, practice.shortest, practice.longest)
        most = min(practice.sentences, length // room)
        values = rng.choice(pool, rng.integers(1, most, endpoint=True), replace=False)
        keys = _keys(rng, pool, len(values))
        said = [hidden.sentence(key, value) for key, value in zip(keys, values, strict=True)]
        times = rng.integers(2, MENTIONS, len(said), endpoint=True)
        body = length - 1 - sum(n * len(s) for n, s in zip(times, said, strict=True))
        text = _real(rng, split, hidden, body)
        shares = [_shares(rng, n, body) for n in times]
        shares[0][-1] = 1.0
        places = [
            (hidden.place(text, share), sentence)
            for sentence, own in zip(said, shares, strict=True)
            for share in own
        ]
        ids = _mixed(text, sorted(places, key=lambda each: each[0]))
        yield tokenizer.decode(ids.tolist()).strip(), len(ids) + 1


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _keys(rng: np.random.Generator, pool: np.ndarray, count: int) -> list[tuple[int, ...]]:
    """Different ones, of one or two words."""
    keys: dict[tuple[int, ...], None] = {}
    while len(keys) < count:
        some = rng.choice(pool, rng.integers(1, 2, endpoint=True), replace=False)
        keys[tuple(some.tolist())] = None
    return list(keys)


def _shares(rng: np.random.Generator, times: int, body: int) -> list[float]:
    """Where a sentence stands, from 0 to 1: anywhere, then at distances even by their logarithm."""
    places = [rng.uniform()]
    for _ in range(times - 1):
        left = max(2.0, (1 - places[-1]) * body)
        places.append(min(1.0, places[-1] + _log_uniform(rng, 1, left) / max(1, body)))
    return places


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


def _mixed(text: np.ndarray, sentences: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """``text`` with each sentence at its place, places in order."""
    parts = np.split(text, [place for place, _ in sentences])
    mixed = [parts[0]]
    for (_, sentence), part in zip(sentences, parts[1:], strict=True):
        mixed += [sentence, part]
    return np.concatenate(mixed)
