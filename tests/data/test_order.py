"""The order of a run is a bijection, well mixed, local, exact in its shares, and never changes."""

import numpy as np
import pytest

from gam_scale.data.order import (
    MIX_PERIOD,
    SPANS_PER_WINDOW,
    Lanes,
    Mix,
    Permutation,
    Shuffle,
    derive_seed,
)


@pytest.mark.parametrize("n", [*range(1, 70), 127, 128, 129, 997, 4096, 4097, 65_537, 1_000_000])
def test_permutation_is_a_bijection(n: int) -> None:
    image = Permutation(n, seed=n)(np.arange(n))
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(n))


def test_permutation_of_a_range_too_large_to_list() -> None:
    n = 10**15 + 37
    index = np.unique(np.random.default_rng(0).integers(0, n, 200_000))
    image = Permutation(n, seed=3)(index)
    assert image.min() >= 0 and image.max() < n
    assert len(np.unique(image)) == len(index)


def test_permutation_of_one_index_is_that_of_many() -> None:
    permute = Permutation(1000, seed=1)
    one_by_one = [int(permute(np.array(i))) for i in range(1000)]
    assert one_by_one == permute(np.arange(1000)).tolist()
    assert permute(np.empty(0, np.int64)).shape == (0,)


def test_every_order_of_three_is_equally_likely() -> None:
    orders = [tuple(Permutation(3, seed)(np.arange(3))) for seed in range(1200)]
    counts = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    # Each of the 6 orders is expected 200 times, with a standard deviation of
    # sqrt(1200 * 1/6 * 5/6) = 13. The limit is 5 deviations.
    assert len(counts) == 6 and np.abs(counts - 200).max() < 65


@pytest.mark.parametrize("n", [1000, 10_007, 1 << 17])
def test_permutation_looks_random(n: int) -> None:
    index = np.arange(n)
    image = Permutation(n, seed=7)(index)
    # For a random permutation, |p(i) - i| has mean n/3 and variance n^2/18, so the mean over n
    # elements has a relative standard deviation of 0.71/sqrt(n). The correlation of neighbours is
    # 0 +- 1/sqrt(n).
    tolerance = 5 / np.sqrt(n)
    assert abs(np.abs(image - index).mean() / (n / 3) - 1) < tolerance
    assert abs(np.corrcoef(index, image)[0, 1]) < tolerance
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < tolerance
    assert (image == index).sum() < 10  # Poisson with mean 1
    assert (np.diff(image) == 1).sum() < 10


def test_permutations_of_different_seeds_differ() -> None:
    images = [Permutation(1000, derive_seed(0, epoch))(np.arange(1000)) for epoch in range(20)]
    for i, a in enumerate(images):
        for b in images[:i]:
            assert (a == b).sum() < 12  # Poisson with mean 1


def test_orders_are_pinned() -> None:
    """A run must resume under a later version, so these values may never change."""
    assert derive_seed(0, "mix") == 9504862899818281261
    assert Permutation(10, 0)(np.arange(10)).tolist() == [8, 4, 7, 2, 3, 0, 9, 1, 5, 6]
    shuffled = [11, 8, 14, 9, 5, 18, 4, 21, 6, 2, 10, 20, 3, 22, 19, 7, 12, 17, 15, 0, 1, 13, 16]
    assert Shuffle(23, 16, 6)(np.arange(23)).tolist() == shuffled
    assert Mix([3, 1], 0)(np.arange(12))[0].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("window", [1, 3, 8, 9, 17, 64, 1000])
def test_shuffle_is_a_bijection(window: int) -> None:
    for n in [*range(1, 90), 255, 256, 257, 1000, 1009]:
        image = Shuffle(n, window, seed=n)(np.arange(n))
        assert np.array_equal(np.sort(image), np.arange(n)), n


def test_shuffle_at_scattered_positions_is_that_of_all() -> None:
    shuffle = Shuffle(1009, 64, seed=2)
    position = np.random.default_rng(0).permutation(1009)[:100]
    assert np.array_equal(shuffle(position), shuffle(np.arange(1009))[position])


def test_shuffle_reads_few_spans_at_once() -> None:
    n, window = 100_003, 800
    shuffle = Shuffle(n, window, seed=4)
    image = shuffle(np.arange(n))
    spans = [np.unique(image[i : i + window] // shuffle.span) for i in range(0, n, window)]
    # A window has SPANS_PER_WINDOW spans, and pieces of two more if the short last span is in it.
    assert max(map(len, spans)) <= SPANS_PER_WINDOW + 2
    # The spans come from all over the set: successive windows are not neighbours.
    first = np.array([s[0] for s in spans])
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.4  # 126 windows: 4.5 / sqrt(126)


def test_shuffle_of_a_small_set_is_one_permutation() -> None:
    image = Shuffle(1000, 1000, seed=4)(np.arange(1000))
    assert np.array_equal(image, Shuffle(1000, 10**9, seed=4)(np.arange(1000)))
    assert abs(np.corrcoef(image, np.arange(1000))[0, 1]) < 5 / np.sqrt(1000)


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], [10_000]),
        ([0.5], [10_000]),
        ([3, 1], [7500, 2500]),
        ([1, 1, 1], [3334, 3333, 3333]),
        ([1e9, 1, 1], [9998, 1, 1]),
        ([0.7, 0.2999999, 1e-7], [7000, 2999, 1]),
    ],
)
def test_mix_counts(weights: list[float], counts: list[int]) -> None:
    assert Mix(weights, seed=0).counts.tolist() == counts


def test_mix_counts_are_exact_in_every_period_and_close_between() -> None:
    weights = [0.6, 0.3, 0.07, 0.03]
    mix = Mix(weights, seed=1)
    sets, _ = mix(np.arange(3 * MIX_PERIOD))
    for period in sets.reshape(3, MIX_PERIOD):
        assert np.bincount(period, minlength=4).tolist() == mix.counts.tolist()
    # A set has one draw at a random time in each of its equal parts of a period. At any time each
    # set is thus within one draw of its share, and all draws together within one draw per set.
    for s, weight in enumerate(weights):
        seen = np.cumsum(sets == s)
        due = weight * np.arange(1, len(sets) + 1)
        assert np.abs(seen - due).max() < 1 + len(weights) * weight


def test_mix_numbers_the_draws_of_each_set() -> None:
    sets, draws = Mix([5, 2, 1], seed=2)(np.arange(25_000))
    for s in range(3):
        assert np.array_equal(draws[sets == s], np.arange((sets == s).sum()))


def test_mix_needs_no_history() -> None:
    mix = Mix([5, 2, 1], seed=2)
    sets, draws = mix(np.arange(25_000))
    later = np.arange(17_123, 25_000)
    assert np.array_equal(mix(later)[0], sets[later])
    assert np.array_equal(mix(later)[1], draws[later])


def test_mix_depends_on_the_seed() -> None:
    n = np.arange(MIX_PERIOD)
    assert not np.array_equal(Mix([1, 1], 0)(n)[0], Mix([1, 1], 1)(n)[0])


@pytest.mark.parametrize(("n", "rows"), [(1, 1), (7, 7), (7, 2), (75, 8), (1000, 1), (1000, 32)])
def test_lanes_go_on_and_share_the_sequences(n: int, rows: int) -> None:
    lanes = Lanes(n, rows, seed=3)
    assert lanes.length == n // rows
    for epoch in range(4):
        first = epoch * lanes.length
        steps = np.arange(first * rows, (first + lanes.length) * rows).reshape(-1, rows)
        assert [lanes.starts_at(first + i) for i in range(lanes.length)].count(True) == 1
        assert lanes.starts_at(first)
        read = lanes(steps.ravel()).reshape(steps.shape)
        assert (np.diff(read, axis=0) == 1).all(), "a row jumps"
        assert len(np.unique(read)) == read.size and 0 <= read.min() <= read.max() < n
        one_by_one = [int(lanes(np.array([i]))[0]) for i in steps.ravel()[:50]]
        assert one_by_one == read.ravel()[:50].tolist()
