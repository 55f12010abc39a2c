"""Encode conversations by a chat template and pack them whole into sequences."""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from gam_scale.data.chat_template import DEFAULT, ChatTemplate
from gam_scale.data.conversation import Conversation
from gam_scale.data.documents import Document, padding_id
from gam_scale.data.encode import Carrying, Encoded, Piece, in_batches, in_order
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import read_tokenizer

TOO_LONG = "too long"  # why a conversation is left out
OPEN = 64  # most sequences that are filled at the same time


@dataclass(frozen=True)
class Pairs:
    """How conversations become sequences.

    Attributes:
        seq_len: tokens of a sequence; longer conversations are left out and counted.
        chat_template: Jinja, see :class:`~gam_scale.data.chat_template.ChatTemplate`.
    """

    seq_len: int
    chat_template: str = DEFAULT


class EncodedPair(NamedTuple):
    """A conversation of a split: its ids (n,), and a mask (n,) bool of those that carry loss."""

    split: str
    ids: np.ndarray
    carries: np.ndarray


def encode_pairs(
    documents: Iterable[tuple[str, Document]],
    tokenizer: Tokenizer,
    pairs: Pairs,
    workers: int,
    left_out: dict[str, Counter[str]],
) -> Generator[Encoded, None, None]:
    """Encode and pack (split, conversation) pairs; yield each sequence when it is closed.

    Args:
        documents: read only a bounded number of batches ahead.
        tokenizer: sent to each worker once, like the template.
        pairs: the template and the sequence length.
        workers: number of processes; with 1, this process does everything.
        left_out: counts by split and reason, to which conversations that are too long are added.

    Raises:
        UserError: the template rejects a conversation (the message names its file and line), or a
            worker was killed.
    """
    pieces = (Piece(split, each, True, True) for split, each in documents)
    make = partial(_encoder, pairs.chat_template)
    packers: dict[str, Packer] = {}
    for split, ids, carries in in_order(in_batches(pieces), workers, make, tokenizer.model_bytes):
        packer = packers.setdefault(split, Packer(split, pairs.seq_len, tokenizer))
        if len(ids) > pairs.seq_len:
            left_out.setdefault(split, Counter())[TOO_LONG] += 1
        else:
            yield from packer.add(ids, carries)
    for packer in packers.values():
        yield from packer.rest()


def _encoder(chat_template: str, model_bytes: bytes) -> "partial[list[EncodedPair]]":
    return partial(_encode, ChatTemplate(chat_template, read_tokenizer(model_bytes)))


def _encode(template: ChatTemplate, batch: list[Piece]) -> list[EncodedPair]:
    encoded = []
    for piece in batch:
        assert isinstance(piece.content, Conversation)
        encoded.append(EncodedPair(piece.split, *template.encode(piece.content)))
    return encoded


@dataclass
class _Sequence:
    """A sequence that is being filled; ``room`` is how many ids still fit."""

    room: int
    ids: list[np.ndarray] = field(default_factory=list)
    carries: list[np.ndarray] = field(default_factory=list)


class Packer:
    """Puts each conversation into the fullest open sequence that has room for it (best fit).

    At most :data:`OPEN` sequences are open; when one more is needed, the fullest is closed. The
    room left in a closed sequence is padding, which carries no loss and begins no document.
    """

    def __init__(self, split: str, seq_len: int, tokenizer: Tokenizer) -> None:
        self._split, self._length = split, seq_len
        self._padding = padding_id(tokenizer.bos_id)
        self._dtype, self._token_bytes = tokenizer.dtype, tokenizer.token_bytes()
        self._open: list[_Sequence] = []

    def add(self, ids: np.ndarray, carries: np.ndarray) -> Iterator[Encoded]:
        """Add a conversation of at most ``seq_len`` ids; yield the sequences that this closes."""
        assert len(ids) <= self._length
        having = [each for each in self._open if each.room >= len(ids)]
        if having:
            chosen = min(having, key=lambda each: each.room)
        else:
            if len(self._open) == OPEN:
                yield self._closed(min(self._open, key=lambda each: each.room))
            chosen = _Sequence(self._length)
            self._open.append(chosen)
        chosen.ids.append(ids)
        chosen.carries.append(carries)
        chosen.room -= len(ids)
        if not chosen.room:
            yield self._closed(chosen)

    def rest(self) -> Iterator[Encoded]:
        """Close and yield the sequences that are still open, in the order of their beginning."""
        while self._open:
            yield self._closed(self._open[0])

    def _closed(self, sequence: _Sequence) -> Encoded:
        self._open = [each for each in self._open if each is not sequence]
        ids, carries = np.concatenate(sequence.ids), np.concatenate(sequence.carries)
        padding = np.full(sequence.room, self._padding, self._dtype)
        return Encoded(
            self._split,
            np.concatenate([ids, padding]),
            documents=len(sequence.ids),
            bytes=int(self._token_bytes[ids].sum()),
            carrying=Carrying(
                np.concatenate([carries, np.zeros(sequence.room, bool)]),
                bytes=int(self._token_bytes[ids[carries]].sum()),
                padding=sequence.room,
            ),
        )
