"""One split of a prepared set, local or remote, read as one long array of token ids."""

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gam_scale.data.manifest import (
    ANSWERS,
    INDEX_FILE,
    MANIFEST_FILE,
    TOKENS,
    Manifest,
    read_manifest,
    verify_files,
    verify_shard,
)
from gam_scale.data.mds import import_streaming
from gam_scale.data.set_files import SetFiles, verify_download
from gam_scale.data.tokenizer import Tokenizer
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError
from gam_scale.strict import read_json

FETCHES = 5
"""Times that a shard is fetched, if other processes delete it to make room for theirs."""
OPEN_SHARDS = 64
"""Shards of a split that stay open, the last used: each takes a file descriptor and a mapping."""


class TokenSplit:
    """The token stream of one split: ``read(start, length)`` anywhere in O(length).

    ``path`` is a folder, read in place, or a URL that mosaicml-streaming can download from
    (s3://, gs://, hf://, ...; file:// copies from a slow disk). Files of a URL are downloaded at
    their first use to a folder of their own below ``cache_dir``, once for all processes that share
    it. They stay there, up to ``cache_limit`` bytes of shards (0: no limit). ``cache_dir`` should
    be on a disk of the node, since downloads are locked with flock.

    The sizes of all local shards are checked when the split is opened. Each shard's hash is checked
    against the manifest at the shard's first use by this process.

    Raises:
        UserError: naming the file that is missing, truncated, changed or cannot be downloaded.
    """

    def __init__(
        self, path: str | Path, split: str, cache_dir: str | Path, cache_limit: float = 0.0
    ) -> None:
        self.path, self.split = str(path), split
        self._files = SetFiles(self.path, Path(cache_dir), cache_limit)
        with self._files.renewable():
            self.manifest = read_manifest(self._files.get(MANIFEST_FILE).parent)
        if split not in self.manifest.splits:
            names = ", ".join(self.manifest.splits)
            raise UserError(f"{self.path} has no split {split!r}; expected one of {names}")
        self.info = self.manifest.splits[split]
        self.tokenizer_file = self._files.get(self.manifest.tokenizer.file)
        self._files.get(f"{split}/{INDEX_FILE}")
        self._verify_sizes()
        self._readers = self._read_index()
        blocks = [reader.samples for reader in self._readers]
        self._first_block = [0, *itertools.accumulate(blocks)]
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._verified: set[int] = set()
        self._lock = threading.Lock()  # batches are read by several threads
        if self._readers and not self._files.url:
            self._shard(len(self._readers) - 1)  # checks the stream's length, too

    @property
    def name(self) -> str:
        """The set's folder or URL and the split, for messages."""
        return f"{self.path}/{self.split}"

    @property
    def tokens(self) -> int:
        """Length of the stream, the bos of each document included."""
        return self.info.tokens

    @property
    def bos_id(self) -> int:
        """The id that starts every document."""
        return self.manifest.tokenizer.bos_id

    def load_tokenizer(self) -> Tokenizer:
        """Return the set's tokenizer.

        Raises:
            UserError: the tokenizer is not the one that the manifest describes.
        """
        with self._files.renewable():
            tokenizer = load_tokenizer(self.tokenizer_file)
            info = self.manifest.tokenizer
            described = (info.vocab_size, info.model_type, info.bos_id, info.eos_id)
            kind = (tokenizer.vocab_size, tokenizer.model_type, tokenizer.bos_id, tokenizer.eos_id)
            if described != kind:
                raise UserError(
                    f"{self.path}/{MANIFEST_FILE}: describes a {info.model_type} tokenizer of "
                    f"{info.vocab_size} ids, documents opened by id {info.bos_id} and closed by "
                    f"{info.eos_id}, where {info.file} is {kind[1]} of {kind[0]} with ids "
                    f"{kind[2]} and {kind[3]}; prepare the data again"
                )
        return tokenizer

    def read(self, start: int, length: int) -> np.ndarray:
        """Return ids ``start`` to ``start + length`` of the stream, in the set's dtype."""
        return self._gather(start, length, _Shard.block, self.manifest.dtype)

    def read_answers(self, start: int, length: int) -> np.ndarray | None:
        """Return which ids of that range carry loss, (length,) bool; None if all ids do."""
        if self.manifest.pairs is None:
            return None
        return self._gather(start, length, _Shard.answers, np.bool_)

    def _gather(
        self, start: int, length: int, read: "Callable[[_Shard, int], np.ndarray]", dtype: Any
    ) -> np.ndarray:
        assert start >= 0 and length >= 0 and start + length <= self.tokens
        out = np.empty(length, dtype)
        done = 0
        while done < length:
            block, inside = divmod(start + done, self.manifest.block_tokens)
            shard, number = self._shard_of(block)
            piece = read(shard, number)[inside : inside + length - done]
            out[done : done + len(piece)] = piece
            done += len(piece)
        return out

    def check_cut(self, seq_len: int, what: str) -> None:
        """Refuse a sequence length that would cut conversations.

        Raises:
            UserError: ``seq_len``, which the message calls ``what``, is not a multiple of the
                length that the conversations are packed to.
        """
        pairs = self.manifest.pairs
        if pairs is not None and seq_len % pairs.seq_len:
            raise UserError(
                f"{what} is {seq_len}, which would cut the conversations of {self.name}, packed to "
                f"{pairs.seq_len} tokens; expected a multiple of that, or a set prepared with "
                f"--seq-len {seq_len}"
            )

    def verify_local(self, number: int) -> bool:
        """Check the content of shard ``number``; return False if it is not on this machine yet.

        Raises:
            UserError: the shard is missing, truncated or changed.
        """
        info = self.info.shards[number]
        path = self._files.folder / self.split / info.file
        if self._files.url and not path.exists():
            return False
        with self._files.renewable():
            verify_shard(path, info, hashes=True)
        return True

    def _shard_of(self, block: int) -> tuple["_Shard", int]:
        """Return the shard that holds a block, and the block's number within that shard."""
        number = bisect.bisect_right(self._first_block, block) - 1
        return self._shard(number), block - self._first_block[number]

    def _shard(self, number: int) -> "_Shard":
        """Return an open shard; its content is verified when this process first opens it."""
        with self._lock:
            shard = self._open.pop(number, None)
            if shard is not None:
                self._open[number] = shard
                return shard
        shard = self._opened(number)
        with self._lock:
            self._open[number] = shard
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)  # whoever reads it still holds it
        return shard

    def _opened(self, number: int) -> "_Shard":
        info, reader = self.info.shards[number], self._readers[number]
        for _ in range(FETCHES):
            path = self._files.get(f"{self.split}/{info.file}", partial(verify_download, info=info))
            try:
                with self._files.renewable():
                    known = number in self._verified
                    verify_shard(path, info, hashes=not known)
                    shard = _Shard(path, reader.samples, info.tokens, self.manifest)
                    if not known:
                        shard.verify(reader)
                        self._verified.add(number)
                return shard
            except (UserError, FileNotFoundError):
                if not self._files.url or path.exists():
                    raise
        raise UserError(
            f"{path}: was deleted by another process before it was read, {FETCHES} times; expected "
            "a data.cache_limit_gb that holds the shards which this node's ranks read at a time"
        )

    def _verify_sizes(self) -> None:
        folder = self._files.folder
        shards = self.info.shards
        if self._files.url:
            shards = [s for s in shards if (folder / self.split / s.file).exists()]
        here = replace(self.manifest, splits={self.split: replace(self.info, shards=shards)})
        with self._files.renewable():
            verify_files(folder, here, hashes=False)

    def _read_index(self) -> list[Any]:
        index = self._files.folder / self.split / INDEX_FILE
        reader_from_json = import_streaming().base.format.reader_from_json
        shards = read_json(index)["shards"]
        readers = [reader_from_json(str(self._files.folder), self.split, s) for s in shards]
        # All but the last shard consist of full blocks, which is what makes offsets computable.
        block_tokens = self.manifest.block_tokens
        expected = [(s.file, -(-s.tokens // block_tokens)) for s in self.info.shards]
        indexed = [(reader.raw_data.basename, reader.samples) for reader in readers]
        full = all(s.tokens % block_tokens == 0 for s in self.info.shards[:-1])
        names, encodings = [TOKENS], [f"ndarray:{self.manifest.dtype}"]
        if self.manifest.pairs is not None:
            names, encodings = [ANSWERS, *names], ["bytes", *encodings]
        columns = (names, encodings, None)
        plain = all((r.column_names, r.column_encodings, r.compression) == columns for r in readers)
        if not (indexed == expected and full and plain):
            raise UserError(
                f"{index}: does not describe the blocks of tokens that {MANIFEST_FILE} lists; "
                "prepare the data again"
            )
        return readers


def chat_template_of(splits: Sequence[TokenSplit]) -> str:
    """Return the chat template of the splits that hold conversations; empty if none does.

    Raises:
        UserError: the splits were made with different templates.
    """
    having = [(split, split.manifest.pairs) for split in splits]
    found = {pairs.chat_template: split.path for split, pairs in having if pairs is not None}
    if len(found) > 1:
        raise UserError(
            f"{' and '.join(list(found.values())[:2])} were prepared with different chat "
            "templates; expected sets that share one"
        )
    return next(iter(found), "")


class _Shard:
    """A memory-mapped MDS file whose samples are blocks of tokens."""

    def __init__(self, path: Path, samples: int, tokens: int, manifest: Manifest) -> None:
        self._path, self._samples, self._manifest = path, samples, manifest
        self._dtype = np.dtype(manifest.dtype)
        self._tokens, self._block_tokens = tokens, manifest.block_tokens
        self._bytes = np.memmap(path, np.uint8, mode="r")
        # An MDS file begins with the number of samples and uint32 offsets of their bounds. Tokens
        # are a sample's last bytes; reading them there is 7x faster than MDSReader, with which two
        # samples are compared.
        self._bounds = np.frombuffer(self._bytes, np.uint32, samples + 1, offset=4)

    def verify(self, reader: Any) -> None:
        """Check that the file holds what the manifest says.

        Args:
            reader: mosaicml-streaming's reader of the file.

        Raises:
            UserError: it holds other tokens, or ids beyond the vocabulary.
        """
        for i in {0, self._samples - 1}:
            item = reader.get_item(i)
            same = np.array_equal(self.block(i), item[TOKENS])
            if not same or (ANSWERS in item and self._packed(i).tobytes() != item[ANSWERS]):
                raise UserError(
                    f"{self._path}: does not hold the {self._tokens} tokens that {MANIFEST_FILE} "
                    "lists; prepare the data again"
                )
        highest = max(int(self.block(i).max()) for i in range(self._samples))
        if highest >= self._manifest.tokenizer.vocab_size:
            raise UserError(
                f"{self._path}: holds id {highest} where {MANIFEST_FILE} has a vocabulary of "
                f"{self._manifest.tokenizer.vocab_size}; prepare the data again"
            )

    def block(self, i: int) -> np.ndarray:
        count = min(self._block_tokens, self._tokens - i * self._block_tokens)
        start = int(self._bounds[i + 1]) - count * self._dtype.itemsize
        return np.frombuffer(self._bytes, self._dtype, count, start)

    def answers(self, i: int) -> np.ndarray:
        """Which tokens of block ``i`` carry loss."""
        return np.unpackbits(self._packed(i)).view(np.bool_)  # up to 7 bits more than tokens

    def _packed(self, i: int) -> np.ndarray:
        count = min(self._block_tokens, self._tokens - i * self._block_tokens)
        sizes = 2 * np.dtype(np.uint32).itemsize  # the sizes of both columns come first
        return np.frombuffer(self._bytes, np.uint8, -(-count // 8), int(self._bounds[i]) + sizes)
