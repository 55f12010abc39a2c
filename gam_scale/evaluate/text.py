"""The text that a checkpoint is measured on, as token ids: a prepared split, or a text file."""

import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gam_scale.checkpoint.load import Trained
from gam_scale.config import DataSetConfig
from gam_scale.data.packing import IGNORE, Batch, make_batch, num_sequences
from gam_scale.data.set_files import cache_folder
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import open_split, read_of_each, valid_batches
from gam_scale.errors import UserError
from gam_scale.files import read_regular
from gam_scale.run.directory import RunDir


@dataclass(frozen=True)
class TextSource:
    """Which text to read, and how much of it."""

    data: str | None = None
    """Folder of a prepared set, instead of the run's own sets."""
    split: str = "valid"
    text: Path | None = None
    """A UTF-8 file to read, as one document, instead of a prepared set."""
    max_tokens: int = 0
    """Most tokens to predict; 0: all."""


@dataclass(frozen=True)
class Read:
    """Which text a checkpoint was measured on, and with which tokenizer."""

    text: str
    """Name to show: the file, or the sets and their split; and its tokens, if it is cut."""
    text_hash: str
    tokenizer: str
    """Number of ids, and the start of the tokenizer's hash."""


def read_of(trained: Trained, source: TextSource) -> Read:
    """Identify the text and the tokenizer of a checkpoint, so that several can be compared."""
    most, sha256 = source.max_tokens, trained.tokenizer.sha256
    if source.text is not None:
        name, parts = str(source.text), [read_regular(source.text)]
        cut = bool(most) and len(_file(trained, source)) > most
    else:
        splits = _splits(trained, source)
        name = ", ".join(f"{s.name}{', answers' if s.info.answers else ''}" for s in splits)
        # Facts of the text, not of its tokens: one text has one hash with any tokenizer.
        sizes = [f"{split.info.documents} documents, {split.info.bytes} bytes" for split in splits]
        parts = [size.encode() for size in sizes]
        cut = 0 < most < sum(split.tokens for split in splits)
    if cut:  # so many tokens of another tokenizer are another part of the text
        name += f", {most:,} tokens"
        parts.append(f"{most} tokens of {sha256}".encode())
    tokenizer = f"{trained.tokenizer.vocab_size:,} ids, {sha256[:8]}"
    return Read(name, hashlib.sha256(b"\n".join(parts)).hexdigest(), tokenizer)


def batches(trained: Trained, source: TextSource, seq_len: int, batch_size: int) -> Iterator[Batch]:
    """Yield the text as sequences of ``seq_len``, packed as in the model's training."""
    documents = trained.config.data.documents
    if source.text is None:
        splits = _splits(trained, source)
        yield from valid_batches(splits, seq_len, documents, batch_size, 0, 1, source.max_tokens)
        return
    ids = _file(trained, source)
    rows = [ids[i * seq_len :][: seq_len + 1] for i in range(num_sequences(len(ids), seq_len))]
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        yield make_batch(part, seq_len, trained.tokenizer.bos_id, documents)


def counted(read: Iterable[Batch], seconds: float = 10.0) -> Iterator[Batch]:
    """Yield the same batches, and print every ``seconds`` or so how many tokens are done."""
    tokens, shown = 0, time.monotonic()
    for batch in read:
        yield batch
        tokens += int((batch.targets != IGNORE).sum())
        if time.monotonic() - shown >= seconds:
            shown = time.monotonic()
            print(f"evaluating: {tokens:,} tokens so far", file=sys.stderr, flush=True)


def documents(trained: Trained, source: TextSource, at_least: int) -> list[np.ndarray]:
    """Return the documents of at least ``at_least`` tokens, as int64 ids that begin with bos.

    Raises:
        UserError: no document is that long.
    """
    if source.text is not None:
        streams = [_file(trained, source)]
    else:
        streams = starts_of(_splits(trained, source), source.max_tokens)
    what = source.text or f"the {source.split} split"
    expected = (
        "a longer text (--text, --data), or fewer tokens (--seq-len, --compare, --needle-lengths)"
    )
    return long_documents(streams, trained.tokenizer.bos_id, at_least, str(what), expected)


def starts_of(splits: Sequence[TokenSplit], max_tokens: int) -> list[np.ndarray]:
    """Read the int64 ids of each split's start; splits share ``max_tokens`` as in evaluations."""
    lengths = read_of_each([split.tokens for split in splits], max_tokens)
    return [s.read(0, n).astype(np.int64) for s, n in zip(splits, lengths, strict=True)]


def long_documents(
    streams: Sequence[np.ndarray], bos: int, at_least: int, what: str, expected: str
) -> list[np.ndarray]:
    """Return the documents of at least ``at_least`` tokens in streams of ids.

    Raises:
        UserError: none is that long; ``what`` and ``expected`` are parts of the message.
    """
    documents = [d for ids in streams for d in np.split(ids, np.flatnonzero(ids == bos)) if len(d)]
    longest = max(map(len, documents), default=0)
    if longest < at_least:
        raise UserError(
            f"the longest document of {what} has {longest:,} tokens and {at_least:,} are needed; "
            f"expected {expected}"
        )
    return [document for document in documents if len(document) >= at_least]


def _splits(trained: Trained, source: TextSource) -> list[TokenSplit]:
    data = trained.config.data
    sets = [DataSetConfig(source.data)] if source.data else data.sets
    if not sets:
        raise UserError(
            f"{trained.path} names no data, as an imported model does not; expected --data DIR or "
            "--text FILE"
        )
    cache = cache_folder(data.cache_dir, RunDir(trained.config.log.run_dir).cache)
    return open_split(sets, source.split, cache, trained.tokenizer.sha256, data.cache_limit)


def _file(trained: Trained, source: TextSource) -> np.ndarray:
    assert source.text is not None
    try:
        text = read_regular(source.text).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"--text {source.text} cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise UserError(f"--text {source.text} is empty; expected some text")
    ids = np.array([trained.tokenizer.bos_id, *trained.tokenizer.encode(text)], np.int64)
    return ids[: source.max_tokens + 1] if source.max_tokens else ids
