"""Sentences hidden in real text and asked for at its end: needles, and pairs of key and value."""

import re
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval, proportion

CUE = (" The magic word of", " is")  # the key stands between them and brings its own space
SEARCH = 48  # tokens around a depth in which the end of a sentence is looked for
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
        """What the value of ``key``, ids of words, comes next after."""
        return np.concatenate([self.before, key, self.between])

    def sentence(self, key: Sequence[int], value: int) -> np.ndarray:
        """What is hidden."""
        return np.concatenate([self.cue(key), [value], self.stop])

    def least_length(self, keys: int, words: int = 1) -> int:
        """Tokens of bos, so many sentences and the cue, with keys of so many words."""
        cue = len(self.before) + words + len(self.between)
        return 1 + keys * (cue + 1 + len(self.stop)) + cue

    def text(
        self, rng: np.random.Generator, documents: Sequence[np.ndarray], body: int
    ) -> np.ndarray:
        """``body`` tokens from anywhere in one of the documents that are so long."""
        long_enough = [d for d in map(self._inside, documents) if len(d) >= body]
        document = long_enough[rng.integers(len(long_enough))]
        start = rng.integers(len(document) - body + 1)
        return document[start : start + body]

    def _inside(self, document: np.ndarray) -> np.ndarray:
        """Without its bos, and the eos that would end a text before its question."""
        closed = self.eos is not None and len(document) > 1 and document[-1] == self.eos
        return document[1 : len(document) - closed]

    def place(self, text: np.ndarray, depth: float) -> int:
        """Where a sentence goes: at the sentence's end nearest to its depth, if one is near."""
        wanted = round(depth * len(text))
        if wanted in (0, len(text)):
            return wanted
        places = 1 + np.flatnonzero(self.ends_sentence[text])
        near = places[np.abs(places - wanted) <= SEARCH]
        return int(near[np.abs(near - wanted).argmin()]) if len(near) else wanted


def words(tokenizer: Tokenizer, at_least: int = 0, of: str = "candidates") -> list[int]:
    """Ids that are a whole word with the space before it, and that the tokenizer itself gives.

    Args:
        tokenizer: whose ids.
        at_least: so many, one for a key and one for each of those that are asked for.
        of: what those are, for the message.

    Raises:
        UserError: there are not so many.
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
    """So many keys of the pool's words, no two alike, each of as many words as ``words()`` says."""
    keys: dict[tuple[int, ...], None] = {}
    while len(keys) < count:
        keys[tuple(rng.choice(pool, words(), replace=False).tolist())] = None
    return list(keys)


def inserted(
    text: np.ndarray, places: Sequence[int], sentences: Sequence[np.ndarray]
) -> np.ndarray:
    """``text`` with each sentence at its place; places are in order."""
    first, *parts = np.split(text, places)
    mixed = [part for pair in zip(sentences, parts, strict=True) for part in pair]
    return np.concatenate([first, *mixed])


def scores_of(last_log_probs: Callable[[Tensor], Tensor], rows: Tensor, choices: Tensor) -> Tensor:
    """Log-probabilities of its choices after each row, (rows, choices); a few rows at a time."""
    few = max(1, TOKENS_PER_PASS // rows.shape[1])
    parts = zip(rows.split(few), choices.split(few), strict=True)
    return torch.cat([last_log_probs(part).gather(1, of) for part, of in parts])


def pooled(cells: Sequence[tuple[int, float, int]]) -> list[tuple[int, Interval]]:
    """Accuracy by length, over all cells (length, accuracy, trials) of it.

    Each answer counts as one question, though answers in one haystack are not quite independent.
    """
    accuracies = []
    for length, group in groupby(sorted(cells), key=lambda cell: cell[0]):
        answers = [(round(share * trials), trials) for _, share, trials in group]
        right, asked = (sum(column) for column in zip(*answers, strict=True))
        accuracies.append((length, proportion(np.arange(asked) < right, np.ones(asked))))
    return accuracies


def to_chance(accuracies: Sequence[tuple[int, Interval]], chance: float) -> int | None:
    """The length from which on no accuracy is surely (95%) above chance; None: the longest is."""
    fallen = None
    for length, accuracy in sorted(accuracies, key=lambda each: each[0], reverse=True):
        if accuracy.low > chance:
            break
        fallen = length
    return fallen
