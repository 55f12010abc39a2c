"""A needle in a haystack: one sentence hidden in real text, asked for at the end of it."""

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
    inserted,
    pooled,
    scores_of,
    words,
)
from gam_scale.evaluate.interval import Interval, mean_interval, proportion


@dataclass(frozen=True)
class NeedleCell:
    """What was found at one length and depth, over all trials."""

    length: int
    """Tokens of context, needle and cue included."""
    depth: float
    """Where the needle stands: 0 at the start of the text, 1 right before the cue."""
    accuracy: Interval
    """Share of trials in which the right word is the likeliest of the candidates."""
    rank: float
    """Mean rank of the right word among the candidates, 1 the best."""
    gain: Interval
    """Nats by which the needle raises the right word's log-probability."""
    right: list[bool]
    """Whether the answer of each trial is right."""

    @property
    def trials(self) -> int:
        """Number of trials."""
        return len(self.right)


@dataclass(frozen=True)
class NeedleResult:
    """Accuracy and gain over lengths and depths."""

    cells: list[NeedleCell]
    candidates: int
    chance: float

    @property
    def by_length(self) -> list[tuple[int, Interval]]:
        """Length in tokens and accuracy over all depths, for each length."""
        return pooled([(c.length, c.right) for c in self.cells])

    @property
    def chance_from(self) -> int | None:
        """The length from which on no length surely beats chance; None if the longest does."""
        return chance_length(self.by_length, self.chance)


class Needles:
    """Texts that hide ``The magic word of KEY is VALUE.`` and ask for the value at their ends.

    The model needs to follow no instruction: a text ends with ``The magic word of KEY is``, and the
    model's probabilities rank the candidate words for the next token. Key and candidates are drawn
    from the tokenizer's whole words, so a candidate is one token and one forward pass scores all of
    them. The gain compares with the same text without the needle, where more of the haystack takes
    its place. A trial has the same haystack, key and value at every depth.

    Args:
        tokenizer: the model's tokenizer.
        documents: ids of real texts, each with its bos; one at least as long as the haystacks.
        lengths: tokens of context.
        depths: shares in [0, 1] of the haystack before the needle.
        trials: haystacks for each length.
        candidates: number of words to choose from.
        seed: seed of haystacks and words.

    Raises:
        UserError: a depth is out of range, the tokenizer has too few whole words, or a length is
            too short for the sentences.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        documents: Sequence[np.ndarray],
        lengths: Sequence[int],
        depths: Sequence[float],
        trials: int = 20,
        candidates: int = 32,
        seed: int = 0,
    ) -> None:
        pool = words(tokenizer, candidates + 1)
        if any(not 0 <= depth <= 1 for depth in depths):
            raise UserError(f"depths has {list(depths)}; expected shares from 0 to 1")
        ask = _Question(tokenizer, pool, candidates)
        least = ask.least_length(keys=1)
        if min(lengths) < least:
            raise UserError(
                f"lengths has {min(lengths)}, too few tokens for the sentence and its "
                f"question; expected {least} or more"
            )
        self._depths, self._candidates = depths, candidates
        self._texts = {}
        for length in lengths:
            rngs = [np.random.default_rng(derive_seed(seed, length, i)) for i in range(trials)]
            self._texts[length] = [ask.rows(rng, documents, length, depths) for rng in rngs]

    def ask(self, last_log_probs: Callable[[Tensor], Tensor]) -> NeedleResult:
        """Ask a model, a map from ids (B, T) to next-token log-probabilities (B, vocab_size)."""
        cells = []
        for length, texts in self._texts.items():
            rows, choices = zip(*texts, strict=True)
            each = [chosen for row, chosen in texts for _ in row]
            found = scores_of(last_log_probs, torch.cat(rows), torch.tensor(each))
            scores = found.view(len(choices), -1, self._candidates).double().numpy()
            cells += [_cell(scores, i, length, depth) for i, depth in enumerate(self._depths)]
        return NeedleResult(cells, self._candidates, 1.0 / self._candidates)


class _Question(HiddenSentences):
    """Makes haystacks with a needle and the question for it."""

    def __init__(self, tokenizer: Tokenizer, pool: Sequence[int], candidates: int) -> None:
        super().__init__(tokenizer)
        self.pool, self.candidates = np.array(pool), candidates

    def rows(
        self,
        rng: np.random.Generator,
        documents: Sequence[np.ndarray],
        length: int,
        depths: Sequence[float],
    ) -> tuple[Tensor, list[int]]:
        """Return texts (depths + 1, length) and candidates.

        The last text has no needle; the first candidate is the right one.
        """
        key, *choices = rng.choice(self.pool, self.candidates + 1, replace=False)
        cue, needle = self.cue([key]), self.sentence([key], choices[0])
        body = length - 1 - len(cue)
        text, bos = self.text(rng, documents, body), np.array([self.bos])
        kept = text[: body - len(needle)]
        rows = []
        for depth in depths:
            place = self.place(kept, depth)
            rows.append(np.concatenate([bos, inserted(kept, [place], [needle]), cue]))
        rows.append(np.concatenate([bos, text, cue]))
        return torch.from_numpy(np.stack(rows).astype(np.int64)), [int(c) for c in choices]


def _cell(scores: np.ndarray, i: int, length: int, depth: float) -> NeedleCell:
    """Grade depth ``i`` of log-probabilities (trials, depths + 1, candidates).

    The last text has no needle; the first candidate is the right one.
    """
    here = scores[:, i]
    rank = 1 + (here[:, 1:] >= here[:, :1]).sum(1)  # a tie counts as wrong
    right = rank == 1
    accuracy = proportion(right.astype(np.float64), np.ones(len(right)))
    gain = mean_interval(here[:, 0] - scores[:, -1, 0])
    return NeedleCell(length, depth, accuracy, float(rank.mean()), gain, right.tolist())
