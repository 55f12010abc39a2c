"""Stages read each piece of text once an epoch, whatever their lengths, batches and mixes."""

from collections import Counter

import numpy as np
import pytest

from gam_scale.config.stages import Stage
from gam_scale.data.order import MIX_PERIOD, Mix, Pieces
from gam_scale.data.shards import TokenSplit
from gam_scale.data.stream import TrainStream, micro_batches

LONGEST = 16


@pytest.fixture(scope="module")
def splits(tmp_path_factory, make_set, numbered):
    """A set of 75 blocks of 16 and a ragged one, and one of 12; each token tells its own place."""
    folder = tmp_path_factory.mktemp("data")
    sizes = {"large": 75 * LONGEST + 8, "small": 12 * LONGEST + 3}
    return [
        TokenSplit(make_set(folder / name, {"train": numbered(n)}), "train", "no cache")
        for name, n in sizes.items()
    ]


def stages(*rows):
    """Return stages that follow each other, from rows of (steps, length, batch, weights)."""
    made, first = [], 0
    for steps, length, batch, weights in rows:
        made.append(Stage(first, steps, length, batch, batch, weights))
        first += steps
    return made


def stream_of(splits, rows, weights=(1.0, 1.0)):
    own = weights[: len(splits)]
    return TrainStream(splits, own, LONGEST, "reset", 0, 1 << 20, stages=rows)


def read(stream, rows, world_size=1):
    """Return the first tokens of the sequences that all ranks read, for each step."""
    steps = []
    for number, stage in enumerate(rows):
        for step in range(stage.steps):
            ranks = [
                micro_batches(stream, step, stage, r, world_size, 0, number)
                for r in range(world_size)
            ]
            batches = [b for rank in ranks for b in rank if b.num_targets]
            assert all(b.tokens.shape[1] == stage.seq_len for b in batches)
            steps.append([int(row[0]) for b in batches for row in b.tokens])
    return steps


def test_each_place_is_read_once_before_an_epoch_ends(splits):
    large = splits[:1]
    rows = stages((16, 4, 8, (1.0,)), (5, 16, 4, (1.0,)), (3, 8, 2, (1.0,)), (1, 16, 17, (1.0,)))
    stream = stream_of(large, rows)
    first = large[0].read(0, 1)[0]
    covered = Counter()
    lengths = [s.seq_len for s in rows for _ in range(s.steps)]
    for length, step in zip(lengths, read(stream, rows), strict=True):
        for start in step:
            covered.update(range((start - first), start - first + length, 4))
    # The stages read 32 blocks in pieces, 20 whole, 6 of the 8 halves of a group of 4 (the last two
    # are passed over), and 17 whole: 73 of the epoch's 76. The ragged block does not count here: it
    # repeats other pieces in place of those that it lacks.
    whole = [n for place, n in covered.items() if place < 75 * LONGEST]
    assert set(whole) == {1}
    assert len(whole) >= 4 * (32 + 20 + 3 + 17 - 1)


def test_the_same_length_reads_on_in_every_set(splits):
    """Under other batches and mixes, each set goes on with the sequence that comes next."""
    rows = stages((10, 16, 4, (3.0, 1.0)), (7, 16, 6, (1.0, 1.0)), (6, 16, 3, (1.0, 0.0)))
    stream, plain = stream_of(splits, rows), stream_of(splits, ())
    found: dict[int, list[int]] = {0: [], 1: []}
    for number, stage in enumerate(rows):
        sets, sequences = stream.locate(np.arange(stage.steps * stage.global_batch_size), number)
        for s, sequence in zip(sets.tolist(), sequences.tolist(), strict=True):
            found[s].append(sequence)
        if number == 2:
            assert set(sets.tolist()) == {0}, "a set of weight 0 is not read"
    sets, sequences = plain.locate(np.arange(MIX_PERIOD))
    for s, own in found.items():
        assert own == sequences[sets == s][: len(own)].tolist()
    assert stream.epochs(rows) == pytest.approx((10 * 4 * 0.75 + 7 * 6 * 0.5 + 6 * 3) / 76)


def test_one_stage_is_a_run_without_stages(splits):
    (whole,) = stages((9, 16, 5, (1.0, 1.0)))
    stream, plain = stream_of(splits, [whole]), stream_of(splits, ())
    assert stream.fingerprint() == plain.fingerprint()
    samples = np.arange(MIX_PERIOD + 50)
    for ours, theirs in zip(stream.locate(samples), plain.locate(samples), strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_reads_the_same(splits, world_size):
    rows = stages((3, 4, 8, (1.0, 1.0)), (3, 16, 3, (1.0, 2.0)), (2, 8, 5, (0.0, 1.0)))
    one = read(stream_of(splits, rows), rows)
    assert read(stream_of(splits, rows), rows, world_size) == one
    # What a stage reads depends neither on later stages nor on its own number of steps.
    longer = stages((3, 4, 8, (1.0, 1.0)), (9, 16, 3, (1.0, 2.0)))
    assert read(stream_of(splits, longer), longer)[:6] == one[:6]


def test_a_ragged_block_gives_no_empty_sequence(splits):
    """The small set's last block has 2 targets, so one piece: it is read in place of all four."""
    rows = stages((13, 4, 8, (0.0, 1.0)))
    stream = stream_of(splits, rows)
    sequences = stream.sequences(0, 13 * 4)
    assert min(map(len, sequences)) == 3
    starts = Counter(int(ids[0]) for ids in sequences)
    assert sorted(starts.values()) == [1] * 48 + [4]


def test_pieces_and_mixes_count_what_they_gave():
    pieces = Pieces(first=5, pieces=4, group=3)
    blocks, parts = pieces(np.arange(30))
    assert blocks[:6].tolist() == [5, 6, 7] * 2 and parts[:6].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(set(zip(blocks.tolist(), parts.tolist(), strict=True))) == 30
    for n in range(1, 30):
        assert pieces.after(n) > blocks[:n].max() and pieces.after(n) - blocks[:n].max() <= 3
    mix = Mix([3.0, 1.0, 0.5], 7)
    for n in (0, 1, 77, MIX_PERIOD, 2 * MIX_PERIOD + 13):
        sets, _ = mix(np.arange(n))
        assert mix.totals(n).tolist() == np.bincount(sets, minlength=3).tolist()
