"""Make batches of token sequences: tokens, targets and positions inside documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from gam_scale.data.documents import padding_id
from gam_scale.model.carry import CarriedRows
from gam_scale.model.layout import Layout
from gam_scale.model.loss import IGNORE
from gam_scale.model.rotary import Rotation

Documents = Literal["reset", "concatenate"]


class Batch(NamedTuple):
    """Sequences of one forward pass, one per row; tokens and targets are (B, T) int64.

    The fields are in the order of the arguments that a model is called with.
    """

    tokens: torch.Tensor
    targets: torch.Tensor  # the next token; IGNORE where there is none
    layout: Layout  # where the tokens stand and where documents begin
    carried: CarriedRows | None = None  # states that the rows continue from; None: from nothing

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``; copies to a CUDA device do not block."""
        free = torch.device(device).type == "cuda"  # Apple's copies may read reused memory
        tokens, targets = (x.to(device, non_blocking=free) for x in (self.tokens, self.targets))
        return self._replace(tokens=tokens, targets=targets, layout=self.layout.to(device))

    def pin(self) -> "Batch":
        """Return the batch in page-locked memory, from where a GPU copies without the host."""
        tokens, targets = self.tokens.pin_memory(), self.targets.pin_memory()
        return self._replace(tokens=tokens, targets=targets, layout=self.layout.pin())

    def turned(self, rotation: Rotation | None) -> "Batch":
        """Return the batch with the tables of a model's rotary embedding."""
        return self._replace(layout=self.layout.turned(rotation))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the batch's memory from being reused until ``stream`` has done its queued work."""
        for x in (self.tokens, self.targets, *self.layout.tensors()):
            x.record_stream(stream)

    @property
    def num_targets(self) -> int:
        """The number of predicted tokens; only for a batch on the CPU (before ``.to(device)``)."""
        return int(np.count_nonzero(self.targets.numpy() != IGNORE))


@dataclass(frozen=True)
class Answers:
    """Ids (n,) of prompts and answers; ``carries`` (n,) bool says which carry loss as targets."""

    ids: np.ndarray
    carries: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


Ids = np.ndarray | Answers
"""The ids of a sequence; in a plain array every id carries loss."""


def num_sequences(tokens: int, seq_len: int) -> int:
    """Return how many sequences a stream of ``tokens`` tokens makes, a ragged last one included.

    Sequence i is ``stream[i*seq_len : (i+1)*seq_len + 1]``. Neighbours share one token: the last
    target of a sequence is the first input of the next. Every token but the stream's first is a
    target exactly once.
    """
    return max(0, -(-(tokens - 1) // seq_len))


def make_batch(
    sequences: Sequence[Ids],
    seq_len: int,
    bos_id: int,
    documents: Documents,
    *,
    goes_on: bool = False,
) -> Batch:
    """Stack sequences of up to ``seq_len + 1`` token ids; shorter ones are padded at the end.

    A sequence of n + 1 ids has n inputs and n targets. A sequence of one id or none becomes a row
    of padding, which has no target and adds nothing to the loss.

    Args:
        sequences: one for each row of the batch.
        seq_len: T, the columns of the batch.
        bos_id: the id that starts every document.
        documents: with "reset", positions restart at 0 at every ``bos_id`` and count on over
            padding; with "concatenate", a row is one stream.
        goes_on: whether rows continue sequences that were read before. Positions before a row's
            first document start then count from 1, because position 0 is a document's start.
    """
    assert len(sequences) > 0
    tokens = np.full((len(sequences), seq_len), padding_id(bos_id), np.int64)
    targets = np.full((len(sequences), seq_len), IGNORE, np.int64)
    for row, sequence in enumerate(sequences):
        ids = sequence.ids if isinstance(sequence, Answers) else sequence
        n = len(ids) - 1
        assert n <= seq_len
        if n > 0:
            tokens[row, :n] = ids[:-1]
            targets[row, :n] = ids[1:]
            if isinstance(sequence, Answers):
                targets[row, :n][~sequence.carries[1:]] = IGNORE
    if documents == "reset":
        layout = Layout.of(document_positions(tokens == bos_id, goes_on=goes_on))
    else:
        layout = Layout.stream(*tokens.shape, first=int(goes_on))
    return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), layout)


def plain_batch(tokens: torch.Tensor, targets: torch.Tensor) -> Batch:
    """Make a batch of (B, T) tokens and targets whose rows are one text each, without documents."""
    return Batch(tokens, targets, Layout.stream(*tokens.shape))


def document_positions(starts: np.ndarray, *, goes_on: bool) -> np.ndarray:
    """Return the tokens since the document's start, (B, T) int64, from a mask of starts (B, T).

    Tokens before a row's first start are counted from the row's beginning: from 0, or from 1 if
    ``goes_on`` (the rows continue earlier ones).
    """
    index = np.arange(starts.shape[1])
    start = np.maximum.accumulate(np.where(starts, index, -1 if goes_on else 0), axis=1)
    return index - start
