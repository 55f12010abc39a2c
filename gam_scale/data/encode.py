"""Documents to token ids on all cores, in order and in bounded memory."""

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from gam_scale.data.holdout import utf8_size
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.errors import UserError

BATCH_CHARS = 1 << 18  # text sent to a worker at a time
BATCHES_AHEAD = 16  # per worker: what may wait, read or encoded, while the writer is busy

_WORD_START = re.compile(r"(?<=[^ ]) ")


class Piece(NamedTuple):
    """A document, or a stretch of one too long to be encoded at once."""

    split: str
    text: str
    starts_document: bool


class Encoded(NamedTuple):
    """The ids of consecutive pieces of one split, bos before each document."""

    split: str
    tokens: np.ndarray  # (n,) in the tokenizer's dtype
    documents: int
    bytes: int  # of the text in UTF-8


def encode_documents(
    documents: Iterable[tuple[str, str]], tokenizer: Tokenizer, workers: int
) -> Iterator[Encoded]:
    """Encode (split, text) pairs; each split's tokens come out in the order its texts came in.

    Args:
        documents: read no further ahead than memory allows.
        tokenizer: sent to each worker once.
        workers: processes; with 1 everything happens in this one.

    Raises:
        UserError: a worker was killed, as the system does where memory is short.
    """
    batches = _batches(_pieces(documents))
    if workers == 1:
        for batch in batches:
            yield from _encode(tokenizer, batch)
        return
    pool = ProcessPoolExecutor(
        workers,
        # A fork would copy the threads' locks of Arrow and the hub's client in whatever state.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer.model_bytes,),
    )
    try:
        with _interrupts_blocked():
            for _ in range(workers):
                pool.submit(int)  # each task starts a process while none is idle
        waiting: deque[Future[list[Encoded]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            if len(waiting) == BATCHES_AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        # Before 3.11.5, such as in Debian 12, Python would wait below, forever, for a batch half
        # written to a pipe that no worker is left to read (CPython's gh-94777).
        if sys.version_info < (3, 11, 5):
            pool._call_queue._reader.close()
        raise UserError(
            f"a tokenising process was killed, most likely for memory; expected fewer than "
            f"--workers {workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _pieces(documents: Iterable[tuple[str, str]]) -> Iterator[Piece]:
    """Cut long documents where a word begins: there the tokenizer's result does not change."""
    for split, text in documents:
        start = 0
        while len(text) - start > 2 * BATCH_CHARS:
            match = _WORD_START.search(text, start + BATCH_CHARS)
            if match is None:
                break
            yield Piece(split, text[start : match.start()], starts_document=start == 0)
            start = match.start()
        yield Piece(split, text[start:], starts_document=start == 0)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, batch: list[Piece]) -> list[Encoded]:
    """The batch's pieces, joined per split."""
    bos = np.array([tokenizer.bos_id], tokenizer.dtype)
    encoded = []
    for split in dict.fromkeys(piece.split for piece in batch):
        pieces = [piece for piece in batch if piece.split == split]
        parts = []
        for piece in pieces:
            parts += [bos] if piece.starts_document else []
            parts.append(tokenizer.encode_array(piece.text))
        documents = sum(piece.starts_document for piece in pieces)
        size = sum(utf8_size(piece.text) for piece in pieces)
        encoded.append(Encoded(split, np.concatenate(parts), documents, size))
    return encoded


_worker_tokenizer: Tokenizer | None = None


def _start_worker(model_bytes: bytes) -> None:
    global _worker_tokenizer
    _worker_tokenizer = Tokenizer(model_bytes)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; those started in here never see it.

    They inherit the mask; a signal that comes meanwhile waits for this process to lift its own.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for its next batch for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(batch: list[Piece]) -> list[Encoded]:
    assert _worker_tokenizer is not None
    return _encode(_worker_tokenizer, batch)
