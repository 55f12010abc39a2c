"""Key-value retrieval: many sentences hidden in one text, one of which is asked for.

A needle can be found by its form alone. Among several sentences of one form, only the key tells
which is meant (the multi-key task of arXiv 2404.06654, the pairs of arXiv 2307.03172).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.order import derive_seed
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.hidden import (
    HiddenSentences,
    chance_length,
    distinct_keys,
    inserted,
    scores_of,
    words,
)
from gam_scale.evaluate.interval import Interval, proportion


@dataclass(frozen=True)
class PairsCell:
    """What was retrieved at one length and number of pairs, over all trials."""

    length: int
    """Tokens of context, sentences and cue included."""
    pairs: int
    accuracy: Interval
    """Share of trials in which the key's value is the likeliest of the text's values."""
    copied: Interval
    """Share of trials in which the likeliest of all candidates is any of the text's values."""
    trials: int

    @property
    def chance(self) -> float:
        """Accuracy of naming one of the text's values at random."""
        return 1.0 / self.pairs


@dataclass(frozen=True)
class PairsResult:
    """Accuracy over lengths and numbers of pairs."""

    cells: list[PairsCell]
    candidates: int
    key_words: int

    @property
    def chance_from(self) -> dict[int, int | None]:
        """By number of pairs, the length from which on no accuracy surely beats chance.

        None if the accuracy at the longest length does.
        """
        return {
            pairs: chance_length(
                [(c.length, c.accuracy) for c in self.cells if c.pairs == pairs], 1.0 / pairs
            )
            for pairs in sorted({c.pairs for c in self.cells})
        }


class KeyValues:
    """Texts that hide several sentences ``The magic word of KEY is VALUE.`` and ask for one value.

    Each text draws its own keys, of ``key_words`` words each, so that no key is known from
    elsewhere; two keys may share a word. Values differ. The sentences are about evenly spaced,
    and any of them may be the one that is asked for. As with
    :class:`gam_scale.evaluate.needle.Needles`, the model needs to follow no instruction.

    Args:
        tokenizer: the model's tokenizer.
        documents: ids of real texts, each with its bos; one at least as long as the longest text.
        lengths: tokens of context.
        pairs: numbers of sentences in a text, each at least 2.
        trials: texts for each length and number of pairs.
        candidates: number of words to choose from, including the text's values.
        key_words: words of a key.
        seed: seed of texts and words.

    Raises:
        UserError: ``pairs`` is out of range, the tokenizer has too few whole words, or a length is
            too short for the sentences.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        documents: Sequence[np.ndarray],
        lengths: Sequence[int],
        pairs: Sequence[int],
        trials: int = 50,
        candidates: int = 32,
        key_words: int = 2,
        seed: int = 0,
    ) -> None:
        if min(pairs) < 2 or max(pairs) > candidates:
            raise UserError(
                f"pairs has {list(pairs)}; expected numbers from 2 to the {candidates} candidates"
            )
        pool, hidden = np.array(words(tokenizer, candidates + 1)), HiddenSentences(tokenizer)
        if min(lengths) < (least := hidden.least_length(max(pairs), key_words)):
            raise UserError(
                f"lengths has {min(lengths)}, too few tokens for {max(pairs)} sentences "
                f"and a question; expected {least} or more"
            )
        self._candidates, self._key_words = candidates, key_words
        self._texts = {}
        for length in lengths:
            for count in pairs:
                texts = []
                for trial in range(trials):
                    rng = np.random.default_rng(derive_seed(seed, "pairs", length, count, trial))
                    keys = distinct_keys(rng, pool, count, lambda: key_words)
                    values = rng.choice(pool, candidates, replace=False)
                    row = _row(rng, hidden, documents, length, keys, values)
                    texts.append((row, torch.from_numpy(values.astype(np.int64))))
                self._texts[length, count] = texts

    def ask(self, last_log_probs: Callable[[Tensor], Tensor]) -> PairsResult:
        """Ask a model, a map from ids (B, T) to next-token log-probabilities (B, vocab_size)."""
        cells = []
        for (length, count), texts in self._texts.items():
            rows, values = map(torch.stack, zip(*texts, strict=True))
            scores = scores_of(last_log_probs, rows, values)
            cells.append(_cell(scores.double().numpy(), length, count))
        return PairsResult(cells, self._candidates, self._key_words)


def _row(
    rng: np.random.Generator,
    hidden: HiddenSentences,
    documents: Sequence[np.ndarray],
    length: int,
    keys: Sequence[Sequence[int]],
    values: np.ndarray,
) -> Tensor:
    """Make a text (length,) that asks for the first key; sentences are in random order."""
    count, cue = len(keys), hidden.cue(keys[0])
    sentences = [hidden.sentence(keys[i], values[i]) for i in rng.permutation(count)]
    body = length - 1 - len(cue) - sum(map(len, sentences))
    text = hidden.text(rng, documents, body)
    places = sorted(hidden.place(text, (i + 0.5) / count) for i in range(count))
    row = np.concatenate([[hidden.bos], inserted(text, places, sentences), cue])
    return torch.from_numpy(row.astype(np.int64))


def _cell(scores: np.ndarray, length: int, pairs: int) -> PairsCell:
    """Grade log-probabilities (trials, candidates).

    The right value comes first, then the text's other values, then the other candidates.
    """
    inside, outside = scores[:, :pairs], scores[:, pairs:]
    # A tie counts as wrong: all other values have to be strictly below the right one.
    right = (inside[:, 1:] < inside[:, :1]).all(axis=1)
    best = inside.max(axis=1) > outside.max(axis=1, initial=-np.inf)
    asked = np.ones(len(scores))
    accuracy = proportion(np.asarray(right, np.float64), asked)
    copied = proportion(np.asarray(best, np.float64), asked)
    return PairsCell(length, pairs, accuracy, copied, len(scores))
