"""The order in which a run reads its sequences, as pure functions of the samples' numbers.

Nothing here has state: which sequence is the n-th of a run follows from the seed and n alone, in
O(1), so that any rank of any world size, before or after a restart, computes the same answer.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

MIX_PERIOD = 10_000  # draws after which a mixture's pattern repeats: shares are exact to 0.01%
SPANS_PER_WINDOW = 8
GROUP, GROUPS = 256, 16
"""A stage of shorter sequences cuts blocks in groups: at most ``GROUP`` of a set's blocks together,
or fewer so that a small set has at least ``GROUPS`` groups.

A batch thus mixes sequences from up to that many places in the text. When a stage of another
length follows, less than one group is left unread.
"""
_ROUNDS = 8


def derive_seed(*parts: int | str) -> int:
    """Return a 64-bit seed that depends on every part; stable over machines and versions."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Permutation:
    """A pseudo-random bijection of range(n) that stores nothing: element i costs O(1).

    A Feistel network permutes the smallest power of two that holds n; values that land outside
    range(n) are fed through again until they are inside ("cycle walking", Black and Rogaway 2002),
    fewer than two passes on average.
    """

    def __init__(self, n: int, seed: int) -> None:
        assert n >= 1
        self.n = n
        bits = (n - 1).bit_length()
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << bits // 2) - 1)
        self._high_mask = np.uint64((1 << bits - bits // 2) - 1)
        self._keys = [np.uint64(derive_seed(seed, i)) for i in range(_ROUNDS)]

    def __call__(self, index: np.ndarray) -> np.ndarray:
        """Return the image of each ``index`` (any shape, each in range(n)) as int64."""
        index = np.asarray(index)
        assert ((index >= 0) & (index < self.n)).all()
        x = self._encrypt(index.astype(np.uint64).reshape(-1))
        while (outside := x >= self.n).any():
            x[outside] = self._encrypt(x[outside])
        return x.astype(np.int64).reshape(index.shape)

    def _encrypt(self, x: np.ndarray) -> np.ndarray:
        # The halves differ by a bit when the width is odd, so they take turns instead of swapping.
        high, low = x >> self._low_bits, x & self._low_mask
        for i, key in enumerate(self._keys):
            if i % 2 == 0:
                high = high ^ (_scramble(low ^ key) & self._high_mask)
            else:
                low = low ^ (_scramble(high ^ key) & self._low_mask)
        return (high << self._low_bits) | low


class Shuffle:
    """A shuffled order of the n sequences of a set that reads a few shards at a time.

    Sequences are cut into contiguous spans, the spans are permuted, and each run of
    ``SPANS_PER_WINDOW`` spans (a window) is permuted inside. A reader thus touches about as many
    shards at once as a window has spans, however large the set. A set that fits into one window is
    permuted as a whole.
    """

    def __init__(self, n: int, window: int, seed: int) -> None:
        """``window`` is the number of sequences shuffled together, rounded to whole spans."""
        assert n >= 1 and window >= 1
        self.n, self.seed = n, seed
        self.span = max(1, window // SPANS_PER_WINDOW)
        self.window = n if n <= window else self.span * SPANS_PER_WINDOW

    def __call__(self, position: np.ndarray) -> np.ndarray:
        """Return the sequences (int64) read at ``position`` (1-D, each in range(n))."""
        mixed = self._inside_windows(np.asarray(position, np.int64))
        return mixed if self.window == self.n else self._permute_spans(mixed)

    def _inside_windows(self, position: np.ndarray) -> np.ndarray:
        window, inside = np.divmod(position, self.window)
        out = np.empty_like(position)
        for w in np.unique(window):
            start = int(w) * self.window
            size = min(self.window, self.n - start)
            here = window == w
            out[here] = start + Permutation(size, derive_seed(self.seed, int(w)))(inside[here])
        return out

    def _permute_spans(self, position: np.ndarray) -> np.ndarray:
        # The short last span (`rest` sequences) goes to a random place among the permuted full
        # ones. Everything behind it is shifted by `rest`, so simple arithmetic finds each place.
        full, rest = divmod(self.n, self.span)
        seed = derive_seed(self.seed, "spans")
        short = seed % (full + 1) * self.span
        is_short = (position >= short) & (position < short + rest)
        behind = position >= short + rest
        span, inside = np.divmod(np.where(behind, position - rest, position), self.span)
        moved = Permutation(full, seed)(np.where(is_short, 0, span)) * self.span + inside
        return np.where(is_short, full * self.span + position - short, moved)


class Lanes:
    """The order for ``data.carry_state``: each row of a batch reads a stretch of the set in order.

    A set's n sequences are cut into ``rows`` equally long stretches, the lanes. In step s every row
    reads the s-th sequence of its lane, so that its state can be carried from one step to the next.
    An epoch ends when the lanes end. The next epoch assigns lanes to rows anew and shifts the start
    of the first lane, so that the n % rows sequences that no lane has room for are other ones.

    Attributes:
        length: number of sequences in a lane, and so of steps in an epoch.
        left_over: number of sequences that an epoch does not read.
    """

    def __init__(self, n: int, rows: int, seed: int) -> None:
        assert n >= rows >= 1
        self.rows, self.seed = rows, seed
        self.length = n // rows
        self.left_over = n - self.length * rows

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return the sequence (int64) of each sample; a step has ``rows`` samples."""
        step, row = np.divmod(np.asarray(samples, np.int64), self.rows)
        epoch, place = np.divmod(step, self.length)
        out = np.empty_like(step)
        for e in np.unique(epoch).tolist():
            here = epoch == e
            lane = Permutation(self.rows, derive_seed(self.seed, "rows", e))(row[here])
            first = derive_seed(self.seed, "first", e) % (self.left_over + 1)
            out[here] = first + lane * self.length + place[here]
        return out

    def starts_at(self, step: int) -> bool:
        """Return whether an epoch starts at ``step``, whose rows then continue nothing earlier."""
        return step % self.length == 0


class Pieces:
    """The order of shorter sequences, which are pieces of blocks; a block is a longest sequence.

    A set's blocks follow each other without end, epoch after epoch. To read them in pieces, a stage
    takes a group of blocks and reads all their first pieces, then all their second pieces, and so
    on. A batch thus mixes as many places of the text as a batch of whole blocks, and each piece
    comes once. The next stage begins behind the last group of which anything was read; the pieces
    that this group had left are never read.

    Args:
        first: the block of the first piece.
        pieces: pieces per block; 1 reads blocks whole.
        group: number of blocks that are cut together; ignored with one piece per block.
    """

    def __init__(self, first: int, pieces: int, group: int) -> None:
        assert pieces >= 1 and group >= 1
        self.first, self.pieces = first, pieces
        self.group = group if pieces > 1 else 1

    def __call__(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the block of each draw of the set (counted from 0), and the piece within it."""
        group, inside = np.divmod(np.asarray(draws, np.int64), self.group * self.pieces)
        piece, block = np.divmod(inside, self.group)
        return self.first + group * self.group + block, piece

    def after(self, draws: int) -> int:
        """Return the block that is read next after ``draws`` pieces."""
        return self.first + -(-draws // (self.group * self.pieces)) * self.group


class Mix:
    """Which data set each draw of a mixture comes from: a seeded pattern of ``MIX_PERIOD`` slots.

    Every period holds exactly ``counts[s]`` draws of set s: the share of its weight, rounded by the
    largest-remainder method, and at least one. Slots are stratified, so that shorter stretches keep
    the shares too.
    """

    def __init__(self, weights: list[float], seed: int) -> None:
        assert weights and min(weights) > 0 and len(weights) <= MIX_PERIOD
        self.counts = _apportion(np.array(weights, np.float64), MIX_PERIOD)
        sets = np.repeat(np.arange(len(weights)), self.counts)
        draws = np.concatenate([np.arange(count) for count in self.counts])
        # Draw k of a set falls at a random time inside the k-th of `count` equal parts.
        bits = _scramble(np.arange(MIX_PERIOD, dtype=np.uint64) ^ np.uint64(derive_seed(seed)))
        time = (draws + (bits >> np.uint64(11)) * 2.0**-53) / self.counts[sets]
        order = np.argsort(time, kind="stable")
        self._sets, self._draws = sets[order], draws[order]

    def __call__(self, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the set of each draw ``n`` of the mixture, and which draw of that set it is."""
        period, slot = np.divmod(np.asarray(n, np.int64), MIX_PERIOD)
        sets = self._sets[slot]
        return sets, period * self.counts[sets] + self._draws[slot]

    def totals(self, n: int) -> np.ndarray:
        """Return how many of the first ``n`` draws are from each set."""
        periods, slots = divmod(n, MIX_PERIOD)
        return periods * self.counts + np.bincount(self._sets[:slots], minlength=len(self.counts))


class StageOrder:
    """Maps the samples of one stage, counted from 0, to sets, blocks and pieces of blocks.

    Args:
        weights: the sets' weights in the :class:`Mix`; a set of weight 0 is not read.
        seed: the run's seed.
        begins: for each set, the block that the stage reads first.
        pieces: the number of pieces that a block is cut into.
        blocks: for each set, its number of blocks.
    """

    def __init__(
        self,
        weights: Sequence[float],
        seed: int,
        begins: np.ndarray,
        pieces: int,
        blocks: np.ndarray,
    ) -> None:
        self.pieces, self._begins = pieces, begins
        self._sets = np.flatnonzero(weights)
        self.mix = Mix([weights[s] for s in self._sets.tolist()], derive_seed(seed, "mix"))
        self._cuts = [
            Pieces(int(begins[s]), pieces, max(1, min(GROUP, int(blocks[s]) // GROUPS)))
            for s in self._sets
        ]

    def __call__(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return each sample's set, block (numbered on over all epochs) and piece of the block."""
        mixed, draws = self.mix(samples)
        blocks, pieces = np.empty_like(draws), np.empty_like(draws)
        for i, cut in enumerate(self._cuts):
            here = mixed == i
            blocks[here], pieces[here] = cut(draws[here])
        return self._sets[mixed], blocks, pieces

    def after(self, samples: int) -> np.ndarray:
        """Return, for each set, the block that is read next after ``samples`` samples."""
        begins, totals = self._begins.copy(), self.mix.totals(samples).tolist()
        for s, cut, drawn in zip(self._sets, self._cuts, totals, strict=True):
            begins[s] = cut.after(drawn)
        return begins


def _scramble(x: np.ndarray) -> np.ndarray:
    """Apply the output function of SplitMix64 (Steele et al. 2014) to an array of uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _apportion(weights: np.ndarray, slots: int) -> np.ndarray:
    """Return integers that sum to ``slots``, proportional to ``weights``, none below 1."""
    exact = weights / weights.sum() * slots
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    while missing := slots - int(counts.sum()):
        if missing > 0:
            counts[np.argmax(exact - counts)] += 1
        else:
            counts[np.argmin(np.where(counts > 1, exact - counts, np.inf))] -= 1
    return counts
