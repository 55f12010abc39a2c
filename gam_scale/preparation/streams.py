"""Read a split's token stream from the files of its parts, and find where it is cut into shards."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gam_scale.data.prepare import SplitWriter

READ_TOKENS = 1 << 22


def read_stream(
    files: Sequence[tuple[Path, int]], dtype: str, start: int, end: int
) -> Iterator[np.ndarray]:
    """Yield ids ``start`` to ``end`` of the concatenated (file, number of ids), some at a time."""
    first = 0
    for path, count in files:
        low, high = max(start, first), min(end, first + count)
        for at in range(low, high, READ_TOKENS):
            stop = min(high, at + READ_TOKENS)
            offset = (at - first) * np.dtype(dtype).itemsize
            ids = np.fromfile(path, dtype, stop - at, offset=offset)
            assert len(ids) == stop - at, f"{path} is cut short"
            yield ids
        first += count


def shard_bounds(tokens: int, dtype: str) -> list[tuple[int, int]]:
    """Return where each shard that one writer of the whole stream would make begins and ends."""
    with tempfile.TemporaryDirectory() as folder:
        writer = SplitWriter(Path(folder) / "probe", dtype)
        full = writer.tokens_of_a_shard(0)
        starts = list(range(0, tokens, full))
        if len(starts) > 1 and tokens - starts[-2] <= writer.tokens_of_a_shard(tokens % full):
            del starts[-1]  # a short last block fits where a whole one does not
    return [(a, b) for a, b in zip(starts, [*starts[1:], tokens], strict=True)]
