"""Make a prepared set of text: a tokenizer, then each split as one token stream in MDS shards."""

import hashlib
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

import gam_scale
from gam_scale.data.digests import DIGESTS_FILE
from gam_scale.data.documents import Document, size_of
from gam_scale.data.encode import Carrying, Encoded, encode_documents
from gam_scale.data.filters import Filters, Sieve
from gam_scale.data.holdout import HoldOut, choose
from gam_scale.data.manifest import (
    ANSWERS,
    INDEX_FILE,
    TOKENS,
    AnswersInfo,
    Manifest,
    PairsInfo,
    ShardInfo,
    SplitInfo,
    TokenizerInfo,
    sha256_of,
    write_manifest,
)
from gam_scale.data.mds import import_streaming
from gam_scale.data.pairs import Pairs, encode_pairs
from gam_scale.data.place import clear_leftovers, may_write, place, verified_manifest, work_folder
from gam_scale.data.progress import progress
from gam_scale.data.sources import FileSource, HubSource, Source
from gam_scale.data.tokenizer import Choice, Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.data.tokens import TokenSource
from gam_scale.errors import UserError
from gam_scale.files import write_bytes

TOKENIZER_FILE = "tokenizer.model"
BLOCK_TOKENS = 16384
SHARD_BYTES = 64 << 20


@dataclass(frozen=True)
class PrepareSpec:
    """What to prepare. Everything but ``out``, ``workers`` and ``overwrite`` decides the result."""

    out: Path
    train: Sequence[Source]
    valid: Sequence[Source] = ()  # none: hold some of train out
    test: Sequence[Source] = ()
    vocab_size: int = 32_000
    model_type: Literal["bpe", "unigram"] = "bpe"
    character_coverage: float | None = None  # see train_tokenizer
    tokenizer: Path | None = None  # use this one instead of training one, see load_tokenizer
    choice: Choice | None = None  # how the given tokenizer is used
    valid_fraction: float = 0.01  # 0: no validation split
    max_documents: int | None = None  # of each split
    filters: Filters = Filters()
    pairs: Pairs | None = None  # the sources hold conversations, see rows.Reading.pairs
    workers: int = 1
    overwrite: bool = False

    @property
    def sources(self) -> list[Source]:
        """The sources of all splits."""
        return [*self.train, *self.valid, *self.test]

    def describe(self) -> dict[str, Any]:
        """Return a JSON-ready account of the inputs; equal accounts give equal sets."""
        if self.tokenizer is None:
            tokenizer: dict[str, Any] = {
                "vocab_size": self.vocab_size,
                "model_type": self.model_type,
            }
            if self.character_coverage is not None:
                tokenizer["character_coverage"] = self.character_coverage
        else:
            tokenizer = {"sha256": load_tokenizer(self.tokenizer, self.choice).sha256}
        sources = {"train": self.train, "valid": self.valid, "test": self.test}
        return {
            **{name: [source.describe() for source in of] for name, of in sources.items() if of},
            "tokenizer": tokenizer,
            "valid_fraction": None if self.valid else self.valid_fraction,
            "max_documents": self.max_documents,
            **self.filters.describe(),
            **self._describe_pairs(),
        }

    def _describe_pairs(self) -> dict[str, Any]:
        if self.pairs is None:
            return {}
        template = hashlib.sha256(self.pairs.chat_template.encode()).hexdigest()
        return {"pairs": {"seq_len": self.pairs.seq_len, "chat_template_sha256": template}}


def prepare(spec: PrepareSpec) -> Manifest:
    """Make the prepared set ``spec.out``, or keep the one that is there.

    The set is built in a hidden folder beside ``spec.out`` and put in place by a rename, so that an
    interruption leaves either the whole set or nothing. A set that was already made from an equal
    ``spec`` is checked and kept.

    Raises:
        UserError: ``spec.out`` holds something else, a source cannot be read or is empty, the
            vocabulary does not fit the text, or the disk is full.
    """
    check_sources(spec)
    out = spec.out.resolve()
    clear_leftovers(out)
    source = spec.describe()
    made = None if may_write(out, spec.overwrite) else verified_manifest(out, source)
    if made is not None:
        print(f"{spec.out} is already prepared from the same inputs", file=sys.stderr)
        return made
    with work_folder(out) as work:
        hold_out = _hold_out(spec)
        tokenizer = _tokenizer(spec, hold_out, work / TOKENIZER_FILE)
        info = TokenizerInfo.of(tokenizer, TOKENIZER_FILE)
        splits = _write_splits(spec, hold_out, tokenizer, work)
        for note in (note for source in spec.sources for note in source.left_out.notes()):
            print(note, file=sys.stderr)
        pairs = None
        if spec.pairs is not None:
            pairs = PairsInfo(spec.pairs.seq_len, spec.pairs.chat_template)
        manifest = Manifest(
            info, tokenizer.dtype, BLOCK_TOKENS, splits, source, gam_scale.__version__, pairs
        )
        if spec.filters.deduplicate:
            manifest = replace(manifest, digests_sha256=sha256_of(work / DIGESTS_FILE))
        write_manifest(work, manifest)
        place(work, out, spec.overwrite)
    return manifest


def check_sources(spec: PrepareSpec) -> None:
    """Refuse sources and settings that do not go together."""
    if spec.tokenizer is None and any(isinstance(s, TokenSource) for s in spec.sources):
        raise UserError(
            "a source of tokens needs the tokenizer that made them; expected --tokenizer"
        )
    if spec.pairs is not None:
        _check_pairs(spec)


def split_documents(
    spec: PrepareSpec, hold_out: HoldOut, sieve: Sieve
) -> Iterator[tuple[str, Document]]:
    """Yield every (split, document), those of the training sources first."""
    yield from hold_out.split(_training(spec, sieve))
    for split, sources in (("valid", spec.valid), ("test", spec.test)):
        for document in sieve.kept(split, _first(sources, spec.max_documents)):
            yield split, document


def _training(spec: PrepareSpec, sieve: Sieve) -> Iterator[Document]:
    return sieve.kept("train", _first(spec.train, spec.max_documents))


def _hold_out(spec: PrepareSpec) -> HoldOut:
    """Choose what of the training sources is held out, after a pass that measures their text."""
    if spec.valid or not spec.valid_fraction:
        return HoldOut()
    sizes = array("Q")
    with progress("measuring the text", _text_bytes(spec, spec.train)) as counter:
        for document in _training(spec, Sieve(spec.filters)):
            sizes.append(size_of(document))
            counter.advance(sizes[-1])
    return choose(sizes, spec.valid_fraction)


def _first(sources: Sequence[Source], count: int | None) -> Iterator[Document]:
    return islice((each for source in sources for each in source.documents()), count)


def _tokenizer(spec: PrepareSpec, hold_out: HoldOut, path: Path) -> Tokenizer:
    """Train a tokenizer on the training documents, or copy the given one, to ``path``."""
    if spec.tokenizer is not None:
        tokenizer = load_tokenizer(spec.tokenizer, spec.choice)
        write_bytes(path, tokenizer.model_bytes)
        return tokenizer
    with progress("training the tokenizer", _text_bytes(spec, spec.train)) as counter:

        def texts() -> Iterator[str]:
            for split, text in hold_out.split(_training(spec, Sieve(spec.filters))):
                counter.advance(size_of(text))
                if split == "train" and isinstance(text, str):
                    yield text

        return train_tokenizer(
            texts(),
            path,
            spec.vocab_size,
            spec.model_type,
            character_coverage=spec.character_coverage,
        )


def _text_bytes(spec: PrepareSpec, sources: Sequence[Source]) -> int | None:
    """Return about how many bytes of text are to be read, or None if that is unknown."""
    sizes = [source.text_bytes for source in sources]
    return None if spec.max_documents is not None or None in sizes else sum(filter(None, sizes))


def _write_splits(
    spec: PrepareSpec, hold_out: HoldOut, tokenizer: Tokenizer, work: Path
) -> dict[str, SplitInfo]:
    writers: dict[str, SplitWriter] = {}
    sieve = Sieve(spec.filters)
    documents = split_documents(spec, hold_out, sieve)
    if spec.pairs is None:
        stream = encode_documents(documents, tokenizer, spec.workers)
    else:
        stream = encode_pairs(documents, tokenizer, spec.pairs, spec.workers, sieve.left_out)
    with progress("tokenising", _text_bytes(spec, spec.sources)) as counter, closing(stream):
        for encoded in stream:
            if encoded.split not in writers:
                folder, has_answers = work / encoded.split, spec.pairs is not None
                writers[encoded.split] = SplitWriter(folder, tokenizer.dtype, has_answers)
            writers[encoded.split].add(encoded)
            counter.advance(encoded.bytes)
    check_splits(spec, set(writers))
    if spec.filters.deduplicate:
        write_bytes(work / DIGESTS_FILE, bytes(sieve.digests))
    return {
        split: writer.finish(dict(sorted(sieve.left_out.get(split, {}).items())))
        for split, writer in sorted(writers.items())
    }


def check_splits(spec: PrepareSpec, written: set[str]) -> None:
    """Refuse a set in which a requested split is missing."""
    held_out = spec.valid_fraction > 0 and not spec.valid
    if held_out and written - {"test"} in ({"train"}, {"valid"}):
        raise UserError(
            "the training text is too short to hold any of it out for validation; expected more "
            "text, a --valid source or --valid-fraction 0"
        )
    asked = {"train": True, "valid": bool(spec.valid), "test": bool(spec.test)}
    for split in (name for name, is_asked in asked.items() if is_asked and name not in written):
        raise UserError(f"--{split}: there is no text in it; expected at least one document")


def _check_pairs(spec: PrepareSpec) -> None:
    """Refuse sources and settings that do not go with conversations."""
    if spec.tokenizer is None:
        raise UserError("--pairs fine-tunes a model; expected its --tokenizer")
    for source in spec.sources:
        if not isinstance(source, FileSource | HubSource) or not source.how.pairs:
            raise UserError(
                f"{source.describe().get('spec', 'a source')}: holds no conversations; expected "
                ".jsonl, .parquet, .arrow or hf:NAME with --pairs"
            )
    for flag, given in (
        ("--min-chars", spec.filters.min_chars),
        ("--max-repetition", spec.filters.max_repetition),
    ):
        if given:
            raise UserError(f"{flag} is of running text; expected none with --pairs")


class SplitWriter:
    """Writes one split's token stream, cut into blocks, as MDS shards in ``folder``.

    With ``has_answers``, the shards also say which tokens carry loss.
    """

    def __init__(self, folder: Path, dtype: str, has_answers: bool = False):
        self._folder = folder
        columns = {TOKENS: f"ndarray:{dtype}"} | ({ANSWERS: "bytes"} if has_answers else {})
        self._mds = import_streaming().MDSWriter(
            out=str(folder),
            columns=columns,
            hashes=["sha256", "xxh3_64"],  # MDSWriter wants them sorted
            size_limit=SHARD_BYTES,
        )
        self._rest = np.empty(0, dtype)
        self._tokens = self._documents = self._bytes = 0
        self._carries = np.empty(0, bool)  # which tokens of the rest carry loss
        self._answers = AnswersInfo(0, 0, 0) if has_answers else None

    def add(self, encoded: Encoded) -> None:
        """Append tokens to the stream; write the blocks that are full."""
        self._tokens += len(encoded.tokens)
        self._documents += encoded.documents
        self._bytes += encoded.bytes
        if encoded.carrying is not None:
            self._count(encoded.carrying)
        stream = np.concatenate([self._rest, encoded.tokens])
        whole = len(stream) // BLOCK_TOKENS * BLOCK_TOKENS
        for start in range(0, whole, BLOCK_TOKENS):
            self._write(stream[start : start + BLOCK_TOKENS])
        self._rest = stream[whole:]

    def _count(self, carrying: Carrying) -> None:
        assert self._answers is not None
        before, self._carries = self._answers, np.concatenate([self._carries, carrying.carries])
        self._answers = AnswersInfo(
            before.tokens + int(carrying.carries.sum()),
            before.bytes + carrying.bytes,
            before.padding + carrying.padding,
        )

    def _write(self, block: np.ndarray) -> None:
        sample: dict[str, Any] = {TOKENS: block}
        if self._answers is not None:
            sample[ANSWERS] = np.packbits(self._carries[: len(block)]).tobytes()
            self._carries = self._carries[len(block) :]
        self._mds.write(sample)

    def tokens_of_a_shard(self, last: int) -> int:
        """Return the most tokens that a shard holds if a block of ``last`` tokens may end it."""
        blocks, room = divmod(
            SHARD_BYTES - self._mds.extra_bytes_per_shard, self._size(BLOCK_TOKENS)
        )
        fits = 0 < last < BLOCK_TOKENS and self._size(last) <= room
        return blocks * BLOCK_TOKENS + (last if fits else 0)

    def _size(self, tokens: int) -> int:
        """Return the bytes that a block of ``tokens`` tokens takes in a shard."""
        sample = {TOKENS: np.zeros(tokens, self._rest.dtype)}
        return len(self._mds.encode_sample(sample)) + self._mds.extra_bytes_per_sample

    def finish(self, left_out: dict[str, int]) -> SplitInfo:
        """Write the rest of the stream and the index; return the description of the split."""
        if len(self._rest):
            self._write(self._rest)
        self._mds.finish()
        shards, left = [], self._tokens
        for shard in self._mds.shards:
            tokens = min(left, shard["samples"] * BLOCK_TOKENS)
            left -= tokens
            raw = shard["raw_data"]
            shards.append(
                ShardInfo(raw["basename"], raw["bytes"], tokens, raw["hashes"]["xxh3_64"])
            )
        assert left == 0
        index = sha256_of(self._folder / INDEX_FILE)
        return SplitInfo(
            self._tokens, self._documents, self._bytes, index, shards, left_out, self._answers
        )
