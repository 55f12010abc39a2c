"""What a run reads: training batches as a pure function of the step, and validation batches."""

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import numpy as np

from gam_scale.config import DataSetConfig
from gam_scale.config.stages import Stage
from gam_scale.data.order import MIX_PERIOD, Lanes, Mix, Shuffle, StageOrder, derive_seed
from gam_scale.data.packing import Answers, Batch, Documents, Ids, make_batch, num_sequences
from gam_scale.data.shards import TokenSplit
from gam_scale.errors import UserError

PREFETCH_STEPS = 4
GIVE_UP_POLL_S = 0.2  # seconds between checks whether to give up waiting
ORDER_VERSION = 1  # part of the fingerprint: raise it when the order of samples changes


def open_split(
    entries: Sequence[DataSetConfig],
    split: str,
    cache_dir: str | Path,
    tokenizer_sha256: str | None = None,
    cache_limit: float = 0.0,
) -> list[TokenSplit]:
    """Open the same split of several prepared sets; for the cache see :class:`TokenSplit`.

    Raises:
        UserError: a set cannot be opened, or the tokenizers differ from each other or from
            ``tokenizer_sha256`` (the tokenizer of a model that is to be trained further).
    """
    splits = [TokenSplit(entry.path, split, cache_dir, cache_limit) for entry in entries]
    first = splits[0].manifest.tokenizer.sha256
    if tokenizer_sha256 is not None and first != tokenizer_sha256:
        raise UserError(
            f"{splits[0].path} was prepared with another tokenizer (sha256 {first[:12]}...) than "
            f"the model's ({tokenizer_sha256[:12]}...); expected a set that shares its "
            "tokenizer.model"
        )
    for other in splits[1:]:
        if other.manifest.tokenizer.sha256 != first:
            raise UserError(
                f"{splits[0].path} and {other.path} were prepared with different tokenizers; "
                "expected sets that share one tokenizer.model"
            )
    return splits


class BatchSizes(Protocol):
    """The batch sizes of a step, as the section ``train`` of a config and each stage have them."""

    @property
    def global_batch_size(self) -> int:
        """Sequences of a step, over all ranks."""

    @property
    def micro_batch_size(self) -> int:
        """The most sequences per rank and forward pass."""


class TrainStream:
    """The endless stream of training sequences (samples), numbered from 0.

    Which tokens sample n holds depends on the sets, their weights, the seed, the sequence length
    and n, and on nothing else. A set is read in a new order in every epoch of its own; within an
    epoch each of its sequences comes exactly once, a ragged last one included.

    With ``stages``, samples are numbered from 0 in each stage. ``seq_len`` is then the longest
    length of all stages; shorter sequences are cut from sequences of that length
    (:class:`~gam_scale.data.order.Pieces`). In every set, a stage continues where the stage before
    it stopped, so that what it reads depends on the earlier stages alone.

    With ``rows`` above 0, the only set is instead read in order, in that many :class:`Lanes`:
    sample n + rows continues sample n. Tokens that would not fill a sequence in every lane are left
    out.

    Raises:
        UserError: a split holds less than one full sequence (with ``rows``: less than one for each
            row), or conversations that ``seq_len`` or a stage's length would cut.
    """

    def __init__(
        self,
        splits: Sequence[TokenSplit],
        weights: Sequence[float],
        seq_len: int,
        documents: Documents,
        seed: int,
        shuffle_tokens: int,
        rows: int = 0,
        stages: Sequence[Stage] = (),
    ) -> None:
        assert len(splits) == len(weights) > 0
        assert not rows or len(splits) == 1
        for split in splits:
            _check_length(split, seq_len)
            split.check_cut(seq_len, "data.seq_len")
        for i, stage in enumerate(stages):
            for s in np.flatnonzero(stage.weights).tolist():
                splits[s].check_cut(stage.seq_len, f"train.stages[{i}].seq_len")
        self.splits = list(splits)
        self.seq_len, self.documents, self.seed = seq_len, documents, seed
        self.bos_id = splits[0].bos_id
        self.shuffle_tokens = shuffle_tokens
        self._lengths = np.array([num_sequences(split.tokens, seq_len) for split in splits])
        self._mix = Mix(list(weights), derive_seed(seed, "mix"))
        self.lanes = _lanes(self.splits[0], seq_len, rows, seed) if rows else None
        self._orders = self._orders_of(stages, weights)

    def _orders_of(self, stages: Sequence[Stage], weights: Sequence[float]) -> list[StageOrder]:
        begins = np.zeros_like(self._lengths)
        orders: list[StageOrder] = []
        for i, stage in enumerate(stages):
            if i:
                before = stages[i - 1]
                begins = orders[-1].after(before.steps * before.global_batch_size)
            pieces = self.seq_len // stage.seq_len
            orders.append(StageOrder(stage.weights, self.seed, begins, pieces, self._lengths))
        return orders or [StageOrder(weights, self.seed, begins, 1, self._lengths)]

    @property
    def epoch_sequences(self) -> int:
        """How many samples it takes to read the first set once (its length, if it is alone)."""
        if self.lanes:
            return self.lanes.length * self.lanes.rows
        return -(-int(self._lengths[0]) * MIX_PERIOD // int(self._mix.counts[0]))

    def fingerprint(self) -> str:
        """Return a hash of all that samples depend on, except for the stages.

        Without stages, streams of the same hash hold the same samples under the same numbers.
        """
        parts = {
            "version": ORDER_VERSION,
            "sets": [[shard.xxh3_64 for shard in split.info.shards] for split in self.splits],
            "shares": self._mix.counts.tolist(),
            "seq_len": self.seq_len,
            "documents": self.documents,
            "seed": self.seed,
            "shuffle_tokens": self.shuffle_tokens,
        }
        if self.lanes:
            parts["rows"] = self.lanes.rows
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def locate(self, samples: np.ndarray, stage: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the set of each sample of a stage, and the number of its sequence in that set.

        The numbers count sequences of the stage's own length.
        """
        if self.lanes:
            return np.zeros_like(samples), self.lanes(samples)
        order = self._orders[stage]
        sets, blocks, pieces = order(samples)
        epochs, position = np.divmod(blocks, self._lengths[sets])
        sequences = np.empty_like(position)
        window = max(1, self.shuffle_tokens // self.seq_len)
        for s, epoch in np.unique(np.stack([sets, epochs], axis=1), axis=0).tolist():
            here = (sets == s) & (epochs == epoch)
            shuffle = Shuffle(int(self._lengths[s]), window, derive_seed(self.seed, s, epoch))
            sequences[here] = shuffle(position[here])
        if order.pieces > 1:
            sequences = self._cut(sets, sequences, pieces, order.pieces)
        return sets, sequences

    def _cut(
        self, sets: np.ndarray, blocks: np.ndarray, pieces: np.ndarray, n_pieces: int
    ) -> np.ndarray:
        """Return the number of each piece in its set, whose blocks have ``n_pieces`` each."""
        length = self.seq_len // n_pieces
        short = np.array([num_sequences(split.tokens, length) for split in self.splits])
        # The ragged last block may lack pieces; the pieces that it has are then read again.
        there = np.minimum(n_pieces, short[sets] - blocks * n_pieces)
        return blocks * n_pieces + pieces % there

    def length(self, stage: int = 0) -> int:
        """Return the sequence length of a stage."""
        return self.seq_len // self._orders[stage].pieces

    def sequences(self, start: int, count: int, stage: int = 0) -> list[Ids]:
        """Return the token ids of a stage's samples ``start`` to ``start + count``.

        Each has one id more than the stage's length, for the last target; the last sequence of a
        set may have fewer.
        """
        sets, sequences = self.locate(np.arange(start, start + count), stage)
        length = self.length(stage)
        return [
            _read_sequence(self.splits[s], i, length, self.splits[s].tokens)
            for s, i in zip(sets.tolist(), sequences.tolist(), strict=True)
        ]

    def epochs(self, stages: Sequence[Stage]) -> float:
        """Return how many times the first set is read in these stages."""
        read = 0.0
        for stage in stages:
            share = 1.0 if self.lanes else stage.weights[0] / sum(stage.weights)
            read += share * stage.steps * stage.global_batch_size * stage.seq_len / self.seq_len
        return read / (self.lanes.length * self.lanes.rows if self.lanes else int(self._lengths[0]))


def n_micro_batches(config: BatchSizes, world_size: int) -> int:
    """Return the number of forward passes per rank and optimizer step (gradient accumulation)."""
    most_rows = -(-config.global_batch_size // world_size)
    return -(-most_rows // config.micro_batch_size)


def micro_batch_rows(rows: int, config: BatchSizes, world_size: int) -> list[int]:
    """Return how many of a rank's ``rows`` each of its micro-batches has."""
    n_micro = n_micro_batches(config, world_size)
    cuts = [rows * i // n_micro for i in range(n_micro + 1)]
    return [b - a for a, b in itertools.pairwise(cuts)]


def micro_batches(
    stream: TrainStream,
    step: int,
    config: BatchSizes,
    rank: int,
    world_size: int,
    first_sample: int = 0,
    stage: int = 0,
) -> list[Batch]:
    """Return this rank's share of step ``step`` (from 0) of a stage, cut into micro-batches.

    The global batch is samples ``[step * G, (step + 1) * G)``, counted from ``first_sample``, at
    any world size; G is ``config.global_batch_size``. Each rank takes contiguous rows, shared as
    equally as possible. All ranks have the same number of micro-batches of at most
    ``config.micro_batch_size`` rows, so that they meet in every collective; a rank with too few
    rows for that gets a micro-batch of one row without a target.
    """
    assert 0 <= rank < world_size
    first = first_sample + step * config.global_batch_size
    begin, end = (config.global_batch_size * r // world_size for r in (rank, rank + 1))
    sequences = stream.sequences(first + begin, end - begin, stage)
    rows = iter(sequences)
    nothing: list[Ids] = [np.empty(0, np.int64)]
    goes_on = stream.lanes is not None
    return [
        make_batch(
            list(itertools.islice(rows, n)) or nothing,
            stream.length(stage),
            stream.bos_id,
            stream.documents,
            goes_on=goes_on,
        )
        for n in micro_batch_rows(len(sequences), config, world_size)
    ]


class Prefetcher:
    """Iterates over ``load(step)`` for steps ``[start, stop)``, loaded ahead by one thread.

    An exception in ``load`` is raised by the ``next`` of its step. ``wait_seconds`` is how long
    the consumer has waited in all. Close it, or use it in a ``with`` statement.

    If ``give_up()`` becomes true while a step is waited for, its ``next`` returns an empty list.
    """

    def __init__(
        self,
        load: Callable[[int], list[Batch]],
        start: int,
        stop: int,
        give_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self.wait_seconds = 0.0
        self._load, self._give_up = load, give_up
        self._steps = iter(range(start, stop))
        self._pending: deque[Future[list[Batch]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        for _ in range(PREFETCH_STEPS):
            self._submit_next()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        if not self._pending:
            raise StopIteration
        began = time.perf_counter()
        try:
            future = self._pending.popleft()
            while not wait([future], GIVE_UP_POLL_S).done and not self._give_up():
                pass
            batches = future.result() if future.done() else []
        finally:
            self.wait_seconds += time.perf_counter() - began
        self._submit_next()
        return batches

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop what was loaded and end the thread, after the step it is loading."""
        self._pending.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit_next(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._pending.append(self._thread.submit(self._load, step))


def valid_batches(
    splits: Sequence[TokenSplit],
    seq_len: int,
    documents: Documents,
    batch_size: int,
    rank: int,
    world_size: int,
    max_tokens: int,
) -> Iterator[Batch]:
    """Yield batches from the start of each split, in stream order: this rank's share of them.

    Every world_size-th batch is this rank's. ``max_tokens`` bounds the predicted tokens, as
    :func:`read_of_each` divides it; 0 means all of them. The last batches may have fewer rows. All
    ranks get the same number of batches, since they meet in every forward pass of a sharded model;
    the last batch of some ranks may hold nothing.
    """
    rows = _valid_rows(splits, seq_len, max_tokens)
    for split in splits:
        split.check_cut(seq_len, "the length to evaluate at")
    for number in itertools.count():
        batch = list(itertools.islice(rows, batch_size))
        if not batch:
            break
        if number % world_size == rank:
            sequences = [_read_sequence(split, i, seq_len, limit) for split, i, limit in batch]
            yield make_batch(sequences, seq_len, splits[0].bos_id, documents)
    if 0 < number % world_size <= rank:
        yield make_batch([np.empty(0, np.int64)], seq_len, splits[0].bos_id, documents)


def _valid_rows(
    splits: Sequence[TokenSplit], seq_len: int, max_tokens: int
) -> Iterator[tuple[TokenSplit, int, int]]:
    """Yield (split, number of the sequence, tokens of the split that are read) for each row."""
    limits = read_of_each([split.tokens for split in splits], max_tokens)
    for split, limit in zip(splits, limits, strict=True):
        for i in range(num_sequences(limit, seq_len)):
            yield split, i, limit


def read_of_each(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Return how many tokens to read from the start of each text to predict about ``max_tokens``.

    Each text gets an equal share, and what a short text cannot use goes to the others. With
    ``max_tokens`` 0, all texts are read whole.
    """
    share, left = max(lengths, default=0), max_tokens
    for others, length in zip(range(len(lengths), 0, -1), sorted(lengths), strict=True):
        if max_tokens and length > -(-left // others):
            share = -(-left // others)
            break
        left -= max(0, length - 1)  # the first token is not predicted
    return [min(length, share + 1) for length in lengths]


def _read_sequence(split: TokenSplit, i: int, seq_len: int, limit: int) -> Ids:
    start = i * seq_len
    length = min(seq_len + 1, limit - start)
    ids, carries = split.read(start, length), split.read_answers(start, length)
    return ids if carries is None else Answers(ids, carries)


def _lanes(split: TokenSplit, seq_len: int, rows: int, seed: int) -> Lanes:
    full = (split.tokens - 1) // seq_len
    if full < rows:
        raise UserError(
            f"{split.name} holds {full} full sequences of data.seq_len {seq_len}, too few for "
            f"data.carry_state with {rows} rows of train.global_batch_size; expected one for each"
        )
    return Lanes(full, rows, derive_seed(seed, "lanes"))


def _check_length(split: TokenSplit, seq_len: int) -> None:
    # Conversations are packed to a length of their own.
    if split.tokens > seq_len or split.manifest.pairs is not None:
        return
    message = f"{split.name} holds {split.tokens} tokens, too few for one sequence of data.seq_len "
    message += f"{seq_len} and the token after it; expected "
    if split.tokens > 1:
        message += f"data.seq_len at most {split.tokens - 1}, or more text"
    else:
        message += "a set with more text"
    raise UserError(message)
