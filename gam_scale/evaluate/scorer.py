"""Scores that a model gives to chosen tokens of many texts, under any engine, over all ranks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gam_scale.data.documents import PADDING
from gam_scale.data.packing import Batch, document_positions
from gam_scale.model.layout import Layout
from gam_scale.parallel.context import part
from gam_scale.parallel.world import World

LEAST = 1024
"""Least width of a row in tokens, where widths are free and the model reads as many."""
AT_ONCE = 1 << 24
"""Number of logits that are turned into log-probabilities at a time."""


class Logits(Protocol):
    """A function that returns the logits (N, vocab_size) at N places ``at`` of tokens (B, T).

    Places index the rows laid end to end. All ranks call it together.
    """

    def __call__(self, tokens: Tensor, layout: Layout, at: Tensor) -> Tensor: ...


class Text(NamedTuple):
    """Ids that a model reads, and the places in them at which its next token is scored."""

    ids: np.ndarray
    at: np.ndarray


class Likelihood(NamedTuple):
    """Scores of the ends of n texts."""

    nats: np.ndarray
    """(n,) log-probability of each end."""
    greedy: np.ndarray
    """(n,) whether every id of the end was likelier than all other ids."""


class Scorer:
    """Scores texts, several to a row, each as a document of its own that sees no other.

    All ranks call the same methods with the same arguments and get the same results: rows are dealt
    to the ranks as in an evaluation, and the ranks' results are summed. No random number is drawn.

    Args:
        logits: the model.
        vocab_size: number of ids that are tokens; a model may have more logits.
        world: the model's ranks.
        seq_len: most tokens of a text.
        batch_size: rows per rank and forward pass.
        fixed: give every pass ``batch_size`` rows of ``seq_len``, as a compiled model wants it.
        watch: called before each pass.
    """

    def __init__(
        self,
        logits: Logits,
        vocab_size: int,
        world: World,
        *,
        seq_len: int,
        batch_size: int,
        fixed: bool = False,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self._logits, self._vocab_size, self._world = logits, vocab_size, world
        self._seq_len, self._batch_size, self._watch = seq_len, batch_size, watch
        self._fixed = fixed or world.axes.context > 1

    def last_log_probs(self, rows: Tensor) -> Tensor:
        """Return log-probabilities of the token after each row, (B, T) ids -> (B, vocab_size)."""
        texts = [Text(row, np.array([len(row) - 1])) for row in rows.numpy()]
        return self._read(texts, lambda log_probs, _: log_probs, self._vocab_size).float()

    def likeliest(self, texts: Sequence[Text], candidates: np.ndarray) -> np.ndarray:
        """Return the likeliest of ``candidates`` (k,) after each place, (places,); -1 for a tie."""
        columns = torch.from_numpy(candidates)
        found = self._read(texts, lambda log_probs, _: log_probs[:, columns], len(candidates))
        best = found.max(1, keepdim=True).values
        unique = (found == best).sum(1) == 1
        return np.where(unique.numpy(), candidates[found.argmax(1).numpy()], -1)

    def likelihoods(self, texts: Sequence[Text], ends: Sequence[np.ndarray]) -> Likelihood:
        """Score the end of each text; ``ends`` has one id for each of a text's places."""
        wanted = torch.from_numpy(np.concatenate(ends).astype(np.int64))[:, None]

        def reduce(log_probs: Tensor, which: Tensor) -> Tensor:
            own = log_probs.gather(1, wanted[which].to(log_probs.device))
            first, second = log_probs.topk(2, dim=1).values.split(1, dim=1)
            return torch.cat([own, torch.where(own >= first, second, first)], dim=1)

        found = self._read(texts, reduce, 2).numpy()
        starts = np.cumsum([0, *map(len, ends)])[:-1]
        hits = np.logical_and.reduceat(found[:, 0] > found[:, 1], starts)
        return Likelihood(np.add.reduceat(found[:, 0], starts), hits)

    def _read(
        self, texts: Sequence[Text], reduce: Callable[[Tensor, Tensor], Tensor], columns: int
    ) -> Tensor:
        """Return (places of all texts, columns) float64 that ``reduce`` makes of log-probabilities.

        ``reduce`` takes the log-probabilities at some places and the numbers of these places.
        """
        rows, width = self._rows(texts)
        readers, device = self._world.axes.readers, self._world.device
        each = self._batch_size if self._fixed else min(self._batch_size, -(-len(rows) // readers))
        out = torch.zeros(sum(len(text.at) for text in texts), columns, dtype=torch.float64)
        for turn in range(-(-len(rows) // (each * readers))):
            self._watch()
            begin = (turn * readers + self._world.reader) * each
            batch = part(_batch(rows[begin : begin + each], each, width), self._world)
            places = batch.targets.flatten()
            at = (places >= 0).nonzero()[:, 0]
            sent = batch.to(device)
            logits = self._logits(sent.tokens, sent.layout, at.to(device))
            size = max(1, AT_ONCE // logits.shape[1])
            for some, which in zip(logits.split(size), places[at].split(size), strict=True):
                out[which] = reduce(self._log_probs(some), which).double().cpu()
        self._world.all_reduce(out)
        return out

    def _log_probs(self, logits: Tensor) -> Tensor:
        logits = logits[:, : self._vocab_size]
        return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)

    def _rows(self, texts: Sequence[Text]) -> tuple[list[list["_Placed"]], int]:
        """Pack texts into rows, in order and as many as fit; return the rows and their width."""
        longest = max(len(text.ids) for text in texts)
        assert longest <= self._seq_len, f"a text of {longest} tokens, of {self._seq_len} at most"
        width = self._seq_len if self._fixed else min(self._seq_len, max(longest, LEAST))
        rows: list[list[_Placed]] = []
        room, first = 0, 0
        for text in texts:
            if len(text.ids) > room:
                rows.append([])
                room = width
            rows[-1].append(_Placed(text, first))
            room -= len(text.ids)
            first += len(text.at)
        return rows, width


class _Placed(NamedTuple):
    """A text, and the number of its first place when the places of all texts are counted."""

    text: Text
    first: int


def _batch(rows: Sequence[Sequence[_Placed]], n_rows: int, width: int) -> Batch:
    """Make a batch of texts as documents; missing rows are padding.

    In place of targets it has the numbers of places, and -1 where there is none.
    """
    tokens = np.full((n_rows, width), PADDING, np.int64)
    places, starts = np.full_like(tokens, -1), np.zeros(tokens.shape, bool)
    starts[:, 0] = True
    for row, placed in enumerate(rows):
        begin = 0
        for text, first in placed:
            tokens[row, begin : begin + len(text.ids)] = text.ids
            places[row, begin + text.at] = first + np.arange(len(text.at))
            starts[row, begin] = True
            begin += len(text.ids)
        starts[row, begin : begin + 1] = True  # padding is a document of its own
    layout = Layout.of(document_positions(starts, goes_on=False))
    return Batch(torch.from_numpy(tokens), torch.from_numpy(places), layout)
