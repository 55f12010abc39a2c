"""The stream of a run: the same samples at any world size and after any restart."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gam_scale.config import DataSetConfig, TrainConfig
from gam_scale.data.order import MIX_PERIOD
from gam_scale.data.packing import IGNORE, Batch, make_batch, num_sequences
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import (
    PREFETCH_STEPS,
    Prefetcher,
    TrainStream,
    micro_batches,
    open_split,
    read_of_each,
    valid_batches,
)
from gam_scale.errors import UserError

MakeSet = Callable[..., Path]
Numbered = Callable[[int], np.ndarray]
SEQ_LEN, BOS = 8, 1


@pytest.fixture(scope="module")
def split(
    tmp_path_factory: pytest.TempPathFactory, make_set: MakeSet, numbered: Numbered
) -> TokenSplit:
    """605 tokens: 75 full sequences of 8 and a ragged one of 4 targets."""
    folder = make_set(tmp_path_factory.mktemp("data") / "set", {"train": numbered(605)})
    return TokenSplit(folder, "train", "no cache")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, make_set: MakeSet) -> TokenSplit:
    """50 tokens from 10,000 on: 6 full sequences of 8 and a ragged one of 1 target."""
    ids = np.arange(10_000, 10_050).astype(np.uint16)
    folder = make_set(tmp_path_factory.mktemp("data") / "small", {"train": ids})
    return TokenSplit(folder, "train", "no cache")


def stream_of(*splits: TokenSplit, weights: list[float] | None = None, **changes) -> TrainStream:
    settings = {"seq_len": SEQ_LEN, "documents": "reset", "seed": 0, "shuffle_tokens": 1 << 20}
    return TrainStream(splits, weights or [1.0] * len(splits), **(settings | changes))


def as_lists(sequences: list[np.ndarray]) -> list[list[int]]:
    return [ids.tolist() for ids in sequences]


@pytest.mark.parametrize("shuffle_tokens", [1, 100, 1 << 20])
def test_an_epoch_holds_every_sequence_once(split: TokenSplit, shuffle_tokens: int) -> None:
    stream = stream_of(split, shuffle_tokens=shuffle_tokens)
    n = num_sequences(split.tokens, SEQ_LEN)
    assert stream.epoch_sequences == n == 76
    ids = split.read(0, split.tokens)
    expected = [ids[i : i + SEQ_LEN + 1].tolist() for i in range(0, split.tokens - 1, SEQ_LEN)]
    epochs = [as_lists(stream.sequences(epoch * n, n)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == expected
        assert epoch != expected, "not shuffled"
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_samples_do_not_depend_on_where_reading_starts(
    split: TokenSplit, small: TokenSplit
) -> None:
    whole = as_lists(stream_of(split, small, weights=[3, 1]).sequences(0, 400))
    for start in (0, 1, 75, 76, 77, 399):
        fresh = stream_of(split, small, weights=[3, 1])
        assert as_lists(fresh.sequences(start, 400 - start)) == whole[start:]
        assert as_lists(fresh.sequences(start, 1)) == whole[start : start + 1]
    assert stream_of(split).sequences(5, 0) == []


def test_a_mixture_keeps_its_shares_and_each_set_its_epochs(
    split: TokenSplit, small: TokenSplit
) -> None:
    stream = stream_of(split, small, weights=[3, 1])
    sets, sequences = stream.locate(np.arange(MIX_PERIOD))
    assert np.bincount(sets).tolist() == [7500, 2500]
    for s, n in ((0, 76), (1, 7)):
        epochs = sequences[sets == s]
        for start in range(0, len(epochs) - n, n):
            assert np.array_equal(np.sort(epochs[start : start + n]), np.arange(n))
    # It takes 102 samples of the stream to read the first set, three quarters of it, once.
    assert stream.epoch_sequences == 102
    assert np.count_nonzero(sets[:102] == 0) in (76, 77)


def test_fingerprint(
    split: TokenSplit, small: TokenSplit, tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    streams = [
        stream_of(split),
        stream_of(small),
        stream_of(split, small),
        stream_of(small, split),
        stream_of(split, small, weights=[2, 1]),
        stream_of(split, seq_len=4),
        stream_of(split, documents="concatenate"),
        stream_of(split, seed=1),
        stream_of(split, shuffle_tokens=100),
    ]
    assert len({stream.fingerprint() for stream in streams}) == len(streams)
    copy = make_set(tmp_path / "copy", {"train": numbered(605)})
    moved = TokenSplit(f"file://{copy}", "train", tmp_path / "cache")
    same = stream_of(moved, weights=[7.0])
    assert same.fingerprint() == streams[0].fingerprint(), "the same tokens in the same order"


@pytest.mark.parametrize("tokens", [2, 8])
def test_too_little_text(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, tokens: int
) -> None:
    tiny = TokenSplit(make_set(tmp_path / "tiny", {"train": numbered(tokens)}), "train", tmp_path)
    message = rf"tiny/train holds {tokens} tokens.* 8 .*data.seq_len at most {tokens - 1}"
    with pytest.raises(UserError, match=message):
        stream_of(tiny)
    stream = stream_of(tiny, seq_len=tokens - 1)
    assert stream.epoch_sequences == 1
    assert as_lists(stream.sequences(0, 3)) == [list(range(2, tokens + 2))] * 3


def test_a_single_token_cannot_train(tmp_path: Path, make_set: MakeSet, numbered: Numbered) -> None:
    tiny = TokenSplit(make_set(tmp_path / "tiny", {"train": numbered(1)}), "train", tmp_path)
    with pytest.raises(UserError, match=r"holds 1 tokens.*expected a set with more text"):
        stream_of(tiny)


def test_sets_must_share_a_tokenizer(tmp_path: Path, make_set: MakeSet, numbered: Numbered) -> None:
    a, b = (make_set(tmp_path / name, {"train": numbered(20)}) for name in "ab")
    c = make_set(tmp_path / "c", {"train": numbered(20)}, tokenizer=b"another")
    entries = {path.name: DataSetConfig(str(path)) for path in (a, b, c)}
    opened = open_split([entries["a"], entries["b"]], "train", tmp_path)
    assert [split.path for split in opened] == [str(a), str(b)]
    with pytest.raises(UserError, match=f"{a} and {c} were prepared with different tokenizers"):
        open_split([entries["a"], entries["c"]], "train", tmp_path)
    sha256 = opened[0].manifest.tokenizer.sha256
    assert open_split([entries["a"]], "train", tmp_path, sha256)
    with pytest.raises(UserError, match=f"{c} was prepared with another tokenizer"):
        open_split([entries["c"]], "train", tmp_path, sha256)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("global_batch", "micro_batch"), [(12, 3), (12, 2), (32, 8), (5, 1)])
def test_any_world_size_reads_the_global_batch(
    split: TokenSplit, world_size: int, global_batch: int, micro_batch: int
) -> None:
    stream = stream_of(split)
    config = TrainConfig(global_batch_size=global_batch, micro_batch_size=micro_batch)
    for step in (0, 5):
        ranks = [micro_batches(stream, step, config, r, world_size) for r in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1, "ranks meet in every micro-batch"
        batches = [batch for rank in ranks for batch in rank]
        assert max(len(batch.tokens) for batch in batches) <= micro_batch
        rows = torch.cat([batch.targets for batch in batches])
        rows = rows[(rows != IGNORE).any(dim=1)]  # rows that fill up a short rank have no targets
        samples = stream.sequences(step * global_batch, global_batch)
        expected = make_batch(samples, SEQ_LEN, BOS, "reset").targets
        assert torch.equal(rows, expected)


def test_steps_are_counted_from_the_first_sample(split: TokenSplit) -> None:
    stream, config = stream_of(split), TrainConfig(global_batch_size=4, micro_batch_size=4)
    (moved,) = micro_batches(stream, 2, config, 0, 1, first_sample=12)
    (usual,) = micro_batches(stream, 5, config, 0, 1)
    assert torch.equal(moved.tokens, usual.tokens)


def test_equal_ranks_get_full_micro_batches(split: TokenSplit) -> None:
    config = TrainConfig(global_batch_size=24, micro_batch_size=4)
    for rank in range(3):
        batches = micro_batches(stream_of(split), 0, config, rank, 3)
        assert [tuple(batch.tokens.shape) for batch in batches] == [(4, SEQ_LEN)] * 2


def test_more_ranks_than_sequences(split: TokenSplit) -> None:
    config = TrainConfig(global_batch_size=2, micro_batch_size=1)
    ranks = [micro_batches(stream_of(split), 0, config, rank, 3) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [1, 1, 1]
    assert sorted(batches[0].num_targets for batches in ranks) == [0, SEQ_LEN, SEQ_LEN]


def test_documents_reach_the_batch(tmp_path: Path, make_set: MakeSet) -> None:
    ids = np.array([1, 5, 6, 1, 7], np.uint16)
    split = TokenSplit(make_set(tmp_path / "set", {"train": ids}), "train", tmp_path)
    config = TrainConfig(global_batch_size=1, micro_batch_size=1)
    (batch,) = micro_batches(stream_of(split, seq_len=4), 0, config, 0, 1)
    assert batch.tokens.tolist() == [[1, 5, 6, 1]]
    assert batch.targets.tolist() == [[5, 6, 1, 7]]
    assert batch.layout.positions.tolist() == [[0, 1, 2, 0]]
    stream = stream_of(split, seq_len=4, documents="concatenate")
    assert micro_batches(stream, 0, config, 0, 1)[0].layout.documents is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("max_tokens", [0, 1, 40, 41, 10**9])
def test_validation_reads_the_start_of_the_split(
    split: TokenSplit, world_size: int, max_tokens: int
) -> None:
    ranks = [
        list(valid_batches([split], SEQ_LEN, "reset", 3, rank, world_size, max_tokens))
        for rank in range(world_size)
    ]
    most = max(map(len, ranks))
    in_order = [rank[i] for i in range(most) for rank in ranks if i < len(rank)]
    targets = torch.cat([batch.targets for batch in in_order])
    read = min(split.tokens, (max_tokens or split.tokens) + 1)
    assert targets[targets != IGNORE].tolist() == split.read(1, read - 1).tolist()
    assert len({len(rank) for rank in ranks}) == 1  # sharded ranks meet in every forward pass
    full = [batch for batch in in_order if batch.num_targets]
    assert all(len(batch.tokens) == 3 for batch in full[:-1])


def test_validation_of_several_splits_shares_the_budget(
    split: TokenSplit, small: TokenSplit
) -> None:
    batches = list(valid_batches([split, small], SEQ_LEN, "concatenate", 4, 0, 1, 48))
    targets = torch.cat([batch.targets for batch in batches]).flatten().tolist()
    assert targets == [*range(3, 27), *range(10_001, 10_025)]
    batches = list(valid_batches([split, small], SEQ_LEN, "concatenate", 4, 0, 1, 0))
    assert sum(batch.num_targets for batch in batches) == 604 + 49


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "read"),
    [
        ([605, 50], 200, [152, 50]),  # the small split's 49 predictions leave 151
        ([3, 3003], 2000, [3, 1999]),
        ([3003, 3, 0, 500], 2000, [1500, 3, 0, 500]),
        ([100, 100, 100], 200, [68, 68, 68]),  # equal shares, rounded up
        ([100, 100, 100], 10**9, [100, 100, 100]),
        ([7, 0], 0, [7, 0]),
        ([], 5, []),
    ],
)
def test_what_a_small_split_cannot_use_goes_to_the_others(lengths, max_tokens, read) -> None:
    assert read_of_each(lengths, max_tokens) == read
    total = sum(max(0, length - 1) for length in lengths)
    predicted = sum(max(0, length - 1) for length in read)
    wanted = min(total, max_tokens or total)
    assert wanted <= predicted < wanted + max(1, len(lengths)), "tokens of the budget are lost"


def test_validation_of_an_empty_split(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    folder = make_set(tmp_path / "set", {"train": numbered(9), "valid": numbered(0)})
    (empty,) = open_split([DataSetConfig(str(folder))], "valid", tmp_path)
    assert list(valid_batches([empty], SEQ_LEN, "reset", 4, 0, 1, 0)) == []


def test_prefetcher_yields_the_steps_in_order(split: TokenSplit) -> None:
    stream = stream_of(split)
    config = TrainConfig(global_batch_size=4, micro_batch_size=2)

    def load(step: int) -> list[Batch]:
        return micro_batches(stream, step, config, 0, 1)

    with Prefetcher(load, 3, 13) as prefetcher:
        loaded = list(prefetcher)
        assert prefetcher.wait_seconds > 0
    assert len(loaded) == 10
    for step, batches in enumerate(loaded, start=3):
        for batch, expected in zip(batches, load(step), strict=True):
            assert torch.equal(batch.tokens, expected.tokens)


def test_prefetcher_is_bounded_and_closes_early() -> None:
    steps: list[int] = []
    prefetcher = Prefetcher(lambda step: steps.append(step) or [], 0, 1000)
    next(prefetcher)
    prefetcher.close()
    assert steps == list(range(len(steps))) and 1 <= len(steps) <= PREFETCH_STEPS + 1
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
    assert list(prefetcher) == []


def test_prefetcher_passes_errors_on_at_their_step() -> None:
    def load(step: int) -> list[Batch]:
        if step == 2:
            raise UserError("shard.00002.mds: is truncated")
        return []

    with Prefetcher(load, 0, 5) as prefetcher:
        assert next(prefetcher) == next(prefetcher) == []
        with pytest.raises(UserError, match=r"shard.00002.mds: is truncated"):
            next(prefetcher)


def test_rows_go_on_where_the_step_before_ended(split: TokenSplit) -> None:
    rows = 4
    stream = stream_of(split, rows=rows)
    length = stream.lanes.length
    assert (length, stream.epoch_sequences) == (75 // rows, 75 // rows * rows)
    steps = [stream.sequences(step * rows, rows) for step in range(2 * length)]
    for step in range(1, 2 * length):
        for before, now in zip(steps[step - 1], steps[step], strict=True):
            assert len(now) == SEQ_LEN + 1
            assert (before[-1] == now[0]) == (step != length), "only an epoch's end interrupts"
    epochs = [as_lists(sum(steps[a : a + length], [])) for a in (0, length)]
    assert all(len({tuple(s) for s in epoch}) == len(epoch) for epoch in epochs)
    assert epochs[0] != epochs[1]
    fingerprints = {stream_of(split, rows=n).fingerprint() for n in (0, rows, rows + 1)}
    assert len(fingerprints) == 3


def test_more_rows_than_full_sequences_are_refused(split: TokenSplit) -> None:
    with pytest.raises(UserError, match="holds 75 full sequences of data.seq_len 8, too few for"):
        stream_of(split, rows=76)
