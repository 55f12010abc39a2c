"""A needle in a haystack: one sentence hidden in real text, asked for at the end of it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.order import derive_seed
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError
from gam_scale.evaluate.interval import Interval, mean_interval, proportion

CUE = (" The magic word of", " is")  # the key stands between them and brings its own space
SEARCH = 48  # tokens around a depth in which the end of a sentence is looked for
TOKENS_PER_PASS = 16_384
_WORD = re.compile(rb" [A-Za-z]{3,}")


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
    trials: int


@dataclass(frozen=True)
class NeedleResult:
    """Accuracy and gain over lengths and depths."""

    cells: list[NeedleCell]
    candidates: int
    chance: float


def words(tokenizer: Tokenizer) -> list[int]:
    """Ids that are a whole word with the space before it, and that the tokenizer itself gives."""
    words = []
    for token in range(tokenizer.vocab_size):
        piece = tokenizer.id_to_bytes(token)
        if _WORD.fullmatch(piece) and list(tokenizer.encode(piece.decode())) == [token]:
            words.append(token)
    return words


def needle(
    last_log_probs: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    documents: Sequence[np.ndarray],
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int = 20,
    candidates: int = 32,
    seed: int = 0,
) -> NeedleResult:
    """Hide ``The magic word of KEY is VALUE.`` in real text and ask for it at the text's end.

    No instruction is followed: the text ends with ``The magic word of KEY is``, and the model's
    own probabilities rank the candidate words for what comes next. Key and candidates are drawn
    from the tokenizer's whole words, so a candidate is one token and one forward pass scores all of
    them. The gain compares with the same text without the needle, which is one sentence longer
    instead. A trial has the same haystack, key and value at every depth.

    Args:
        last_log_probs: maps ids (B, T) to log-probabilities of the next token (B, vocab_size).
        tokenizer: the model's.
        documents: ids of real texts, each with its bos; one at least as long as the haystacks.
        lengths: tokens of context.
        depths: shares in [0, 1] of the haystack before the needle.
        trials: haystacks for each length.
        candidates: words to choose from.
        seed: of haystacks and words.

    Raises:
        UserError: too few words in the tokenizer, or a length that does not hold the sentences.
    """
    pool = words(tokenizer)
    if len(pool) < candidates + 1:
        raise UserError(
            f"the tokenizer has {len(pool)} ids that are whole words, too few for {candidates} "
            f"candidates; expected --candidates at most {max(0, len(pool) - 1)}, or a larger "
            "vocabulary"
        )
    if any(not 0 <= depth <= 1 for depth in depths):
        raise UserError(f"--needle-depths has {list(depths)}; expected shares from 0 to 1")
    ask = _Question(tokenizer, pool, candidates)
    least = ask.least_length
    if min(lengths) < least:
        raise UserError(
            f"--needle-lengths has {min(lengths)}, too few tokens for the sentence and its "
            f"question; expected {least} or more"
        )
    cells = []
    for length in lengths:
        log_probs = []
        for trial in range(trials):
            rng = np.random.default_rng(derive_seed(seed, length, trial))
            rows, choices = ask.rows(rng, documents, length, depths)
            parts = rows.split(max(1, TOKENS_PER_PASS // length))
            log_probs.append(torch.cat([last_log_probs(part)[:, choices] for part in parts]))
        scores = torch.stack(log_probs).double().numpy()  # (trials, depths + 1, candidates)
        cells += [_cell(scores, i, length, depth) for i, depth in enumerate(depths)]
    return NeedleResult(cells, candidates, 1.0 / candidates)


class _Question:
    """Makes haystacks that hold a needle, and the question for it."""

    def __init__(self, tokenizer: Tokenizer, pool: Sequence[int], candidates: int) -> None:
        self.bos, self.pool, self.candidates = tokenizer.bos_id, np.array(pool), candidates
        self.before, self.between = (np.array(tokenizer.encode(text)) for text in CUE)
        self.stop = np.array(tokenizer.encode("."))
        closing = (b".", b"!", b"?", b"\n")
        last = [tokenizer.id_to_bytes(i).endswith(closing) for i in range(tokenizer.vocab_size)]
        self.ends_sentence = np.array(last)

    @property
    def least_length(self) -> int:
        """Tokens of bos, needle and cue."""
        cue = len(self.before) + 1 + len(self.between)
        return 1 + cue + 1 + len(self.stop) + cue

    def rows(
        self,
        rng: np.random.Generator,
        documents: Sequence[np.ndarray],
        length: int,
        depths: Sequence[float],
    ) -> tuple[Tensor, list[int]]:
        """Texts (depths + 1, length), the last without the needle; candidates, the right first."""
        key, *choices = rng.choice(self.pool, self.candidates + 1, replace=False)
        cue = np.concatenate([self.before, [key], self.between])
        needle = np.concatenate([cue, [choices[0]], self.stop])
        body = length - 1 - len(cue)
        long_enough = [d for d in documents if len(d) > body]
        document = long_enough[rng.integers(len(long_enough))][1:]  # without its bos
        start = rng.integers(len(document) - body + 1)
        text, bos = document[start : start + body], np.array([self.bos])
        kept = text[: body - len(needle)]
        rows = []
        for depth in depths:
            place = self._place(kept, depth)
            rows.append(np.concatenate([bos, kept[:place], needle, kept[place:], cue]))
        rows.append(np.concatenate([bos, text, cue]))
        return torch.from_numpy(np.stack(rows).astype(np.int64)), [int(c) for c in choices]

    def _place(self, text: np.ndarray, depth: float) -> int:
        """Where the needle goes: at the sentence's end nearest to its depth, if one is near."""
        wanted = round(depth * len(text))
        if wanted in (0, len(text)):
            return wanted
        places = 1 + np.flatnonzero(self.ends_sentence[text])
        near = places[np.abs(places - wanted) <= SEARCH]
        return int(near[np.abs(near - wanted).argmin()]) if len(near) else wanted


def _cell(scores: np.ndarray, i: int, length: int, depth: float) -> NeedleCell:
    """Depth ``i`` of log-probabilities (trials, depths + 1, candidates), the right one first."""
    here = scores[:, i]
    rank = 1 + (here[:, 1:] >= here[:, :1]).sum(1)  # a tie is not knowledge
    accuracy = proportion((rank == 1).astype(np.float64), np.ones(len(rank)))
    gain = mean_interval(here[:, 0] - scores[:, -1, 0])
    return NeedleCell(length, depth, accuracy, float(rank.mean()), gain, len(rank))
