"""Encode documents to token ids on all cores, in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from gam_scale.data.documents import Document, TokenIds, utf8_size
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import read_tokenizer
from gam_scale.data.workers import WorkerDied, Workers
from gam_scale.errors import UserError

BATCH_CHARS = 1 << 18  # text sent to a worker at a time
BATCHES_AHEAD = 16  # per worker: batches that may wait, read or encoded, while the writer is busy


class Piece(NamedTuple):
    """A document, or a stretch of one too long to be encoded at once."""

    split: str
    content: Document
    starts_document: bool
    ends_document: bool


class Carrying(NamedTuple):
    """Which ids carry loss, (n,) bool; the UTF-8 bytes of their text; how many ids are padding."""

    carries: np.ndarray
    bytes: int
    padding: int


class Encoded(NamedTuple):
    """The ids of consecutive pieces of one split: bos before each document, eos (if any) after."""

    split: str
    tokens: np.ndarray  # (n,) in the tokenizer's dtype
    documents: int
    bytes: int  # UTF-8 bytes of the text
    carrying: Carrying | None = None  # None: all ids carry loss


def encode_documents(
    documents: Iterable[tuple[str, Document]], tokenizer: Tokenizer, workers: int
) -> Generator[Encoded, None, None]:
    """Encode (split, document) pairs; each split's tokens come out in the order its texts came in.

    Args:
        documents: read only a bounded number of batches ahead.
        tokenizer: sent to each worker once.
        workers: number of processes; with 1, this process does everything.

    Raises:
        UserError: a worker was killed, as the system does when memory runs out.
    """
    batches = in_batches(_pieces(documents, tokenizer))
    yield from in_order(batches, workers, _encoder, tokenizer.model_bytes)


def in_order(
    batches: Iterable[list[Piece]],
    workers: int,
    make: Callable[[bytes], Callable[[list[Piece]], list[Any]]],
    model_bytes: bytes,
) -> Generator[Any, None, None]:
    """Yield the items that ``make(model_bytes)(batch)`` returns for each batch, in order.

    Each process calls ``make`` once.

    Raises:
        UserError: a worker was killed, as the system does when memory runs out.
    """
    if workers == 1:
        encode = make(model_bytes)
        for batch in batches:
            yield from encode(batch)
        return
    try:
        with Workers(workers, make, model_bytes) as pool:
            waiting: deque[Future[list[Any]]] = deque()
            for batch in batches:
                waiting.append(pool.submit(batch))
                if len(waiting) == BATCHES_AHEAD * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
    except WorkerDied:
        raise UserError(
            f"a tokenising process was killed, most likely for memory; expected fewer than "
            f"--workers {workers}"
        ) from None


def _encoder(model_bytes: bytes) -> Callable[[list[Piece]], list[Encoded]]:
    """Return the function with which a process encodes batches."""
    return partial(_encode, read_tokenizer(model_bytes))


def _pieces(documents: Iterable[tuple[str, Document]], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Yield each document as a piece; cut long ones into the stretches that are encoded apart."""
    for split, document in documents:
        left = len(document)
        for number, part in enumerate(_stretches(document, tokenizer)):
            left -= len(part)
            yield Piece(split, part, number == 0, left == 0)


def _stretches(document: Document, tokenizer: Tokenizer) -> Iterator[Document]:
    if isinstance(document, TokenIds):
        yield from document.stretches(BATCH_CHARS)
    else:
        assert isinstance(document, str)  # pairs.py encodes conversations
        yield from tokenizer.stretches(document)


def in_batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Group pieces into batches of about :data:`BATCH_CHARS` characters."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.content)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[Piece]) -> list[Encoded]:
    """Encode a batch's pieces and join them per split."""
    bos = np.array([tokenizer.bos_id], tokenizer.dtype)
    eos = bos[:0] if tokenizer.eos_id is None else np.array([tokenizer.eos_id], tokenizer.dtype)
    encoded = []
    for split in dict.fromkeys(piece.split for piece in batch):
        pieces = [piece for piece in batch if piece.split == split]
        parts = []
        for piece in pieces:
            parts += [bos] if piece.starts_document else []
            parts.append(_ids(tokenizer, piece.content))
            parts += [eos] if piece.ends_document else []
        documents = sum(piece.starts_document for piece in pieces)
        size = sum(_bytes(tokenizer, piece.content) for piece in pieces)
        encoded.append(Encoded(split, np.concatenate(parts), documents, size))
    return encoded


def _ids(tokenizer: Tokenizer, document: Document) -> np.ndarray:
    if isinstance(document, str):
        return tokenizer.encode_array(document)
    assert isinstance(document, TokenIds)
    ids = document.ids
    if len(ids) and not 0 <= (odd := int(min(ids.min(), 0) or ids.max())) < tokenizer.vocab_size:
        raise UserError(
            f"the tokens have id {odd} where the tokenizer has {tokenizer.vocab_size} ids; "
            "expected the --tokenizer that made them, and --token-dtype as they were written"
        )
    return ids.astype(tokenizer.dtype)


def _bytes(tokenizer: Tokenizer, document: Document) -> int:
    """Return the UTF-8 bytes of a document's text."""
    if isinstance(document, TokenIds):
        return int(tokenizer.token_bytes()[document.ids].sum())
    assert isinstance(document, str)
    return utf8_size(document)
