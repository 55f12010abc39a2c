"""Sentences hidden in real text and asked for at its end, for needles and key-value pairs."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval, proportion

CUE = (" The magic word of", " is")  # the key comes between; its ids include the space before it
SEARCH = 48  # most tokens from the wanted place to the end of a sentence
TOKENS_PER_PASS = 16_384
_WORD = re.compile(rb" [A-Za-z]{3,}")


class HiddenSentences:
    """The sentence ``The magic word of KEY is VALUE.``, its question, and real text around them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.bos, self.eos = tokenizer.bos_id, tokenizer.eos_id
        self.before, self.between = (np.array(tokenizer.encode(text)) for text in CUE)
        self.stop = np.array(tokenizer.encode("."))
        closing = (b".", b"!", b"?", b"\n")
        last = [tokenizer.id_to_bytes(i).endswith(closing) for i in range(tokenizer.vocab_size)]
        self.ends_sentence = np.array(last)

    def cue(self, key: Sequence[int]) -> np.ndarray:
        """Return the question for ``key`` (ids of words); its answer is the next token."""
        return np.concatenate([self.before, key, self.between])

    def sentence(self, key: Sequence[int], value: int) -> np.ndarray:
        """Return the sentence that is hidden: cue, value and full stop."""
        return np.concatenate([self.cue(key), [value], self.stop])

    def least_length(self, keys: int, words: int = 1) -> int:
        """Count the tokens of bos, ``keys`` sentences and a cue, with ``words`` words in a key."""
        cue = len(self.before) + words + len(self.between)
        return 1 + keys * (cue + 1 + len(self.stop)) + cue

    def text(
        self, rng: np.random.Generator, documents: Sequence[np.ndarray], body: int
    ) -> np.ndarray:
        """Draw ``body`` successive tokens from anywhere in one of the documents long enough."""
        long_enough = [d for d in map(self._inside, documents) if len(d) >= body]
        document = long_enough[rng.integers(len(long_enough))]
        start = rng.integers(len(document) - body + 1)
        return document[start : start + body]

    def _inside(self, document: np.ndarray) -> np.ndarray:
        """Strip the bos, and the eos, which would end a text before its question."""
        closed = self.eos is not None and len(document) > 1 and document[-1] == self.eos
        return document[1 : len(document) - closed]

    def place(self, text: np.ndarray, depth: float) -> int:
        """Return the place for a sentence: the sentence end nearest ``depth``, if one is near."""
        wanted = round(depth * len(text))
        if wanted in (0, len(text)):
            return wanted
        places = 1 + np.flatnonzero(self.ends_sentence[text])
        near = places[np.abs(places - wanted) <= SEARCH]
        return int(near[np.abs(near - wanted).argmin()]) if len(near) else wanted


def words(tokenizer: Tokenizer, at_least: int = 0, of: str = "candidates") -> list[int]:
    """Return the ids of whole words: space and three letters or more, encoded as one id.

    Args:
        tokenizer: the tokenizer to search.
        at_least: number of words that are needed: one for a key, and the others for ``of``.
        of: what the other words are for, for the error message.

    Raises:
        UserError: there are fewer than ``at_least`` words.
    """
    ids = []
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.id_to_bytes(token)
        if _WORD.fullmatch(piece) and list(tokenizer.encode(piece.decode())) == [token]:
            ids.append(token)
    if len(ids) < at_least:
        raise UserError(
            f"the tokenizer has {len(ids)} ids that are whole words, too few for {at_least - 1} "
            f"{of}; expected {of} of at most {max(0, len(ids) - 1)}, or a larger "
            "vocabulary"
        )
    return ids


def distinct_keys(
    rng: np.random.Generator, pool: np.ndarray, count: int, words: Callable[[], int]
) -> list[tuple[int, ...]]:
    """Draw ``count`` different keys, each of ``words()`` different words of the pool."""
    keys: dict[tuple[int, ...], None] = {}
    while len(keys) < count:
        keys[tuple(rng.choice(pool, words(), replace=False).tolist())] = None
    return list(keys)


def inserted(
    text: np.ndarray, places: Sequence[int], sentences: Sequence[np.ndarray]
) -> np.ndarray:
    """Return ``text`` with each sentence inserted at its place; places are ascending."""
    first, *parts = np.split(text, places)
    mixed = [part for pair in zip(sentences, parts, strict=True) for part in pair]
    return np.concatenate([first, *mixed])


def scores_of(last_log_probs: Callable[[Tensor], Tensor], rows: Tensor, choices: Tensor) -> Tensor:
    """Return log-probabilities (rows, choices) of each row's choices as its next token.

    A few rows are read at a time, about :data:`TOKENS_PER_PASS` tokens.
    """
    few = max(1, TOKENS_PER_PASS // rows.shape[1])
    parts = zip(rows.split(few), choices.split(few), strict=True)
    return torch.cat([last_log_probs(part).gather(1, of) for part, of in parts])


def pooled(cells: Sequence[tuple[int, Sequence[bool]]]) -> list[tuple[int, Interval]]:
    """Return the accuracy at each length over all its cells.

    Args:
        cells: length, and whether the answer of each trial is right. A trial has the same text and
            answer in all cells of a length, so that it, not the answer, is the independent unit.
    """
    accuracies = []
    for length, group in groupby(sorted(cells, key=_length), key=_length):
        right = np.array([found for _, found in group], np.float64)  # (cells, trials)
        asked = np.full(right.shape[1], float(len(right)))
        accuracies.append((length, proportion(right.sum(0), asked)))
    return accuracies


def _length(cell: tuple[int, Sequence[bool]]) -> int:
    return cell[0]


def chance_length(accuracies: Sequence[tuple[int, Interval]], chance: float) -> int | None:
    """Return the length from which on no 95% interval is above chance; None: the longest is."""
    fallen = None
    for length, accuracy in sorted(accuracies, key=lambda each: each[0], reverse=True):
        if accuracy.low > chance:
            break
        fallen = length
    return fallen
