"""Write small prepared sets directly, so that the tests of reading need no tokenizer."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from gam_scale.data.manifest import (
    Manifest,
    ShardInfo,
    SplitInfo,
    TokenizerInfo,
    sha256_of,
    write_manifest,
)
from gam_scale.data.mds import import_streaming

BOS = 1


def write_set(
    folder: Path,
    splits: dict[str, np.ndarray],
    *,
    block_tokens: int = 16,
    blocks_per_shard: int = 4,
    tokenizer: bytes = b"a tokenizer",
) -> Path:
    """Write ``splits`` (name -> token ids of one stream) as a prepared set; return its folder."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(tokenizer)
    infos = {
        name: _write_split(folder / name, ids, block_tokens, blocks_per_shard)
        for name, ids in splits.items()
    }
    sha256 = hashlib.sha256(tokenizer).hexdigest()
    vocabulary = max(1000, *(int(ids.max(initial=0)) + 1 for ids in splits.values()))
    info = TokenizerInfo("tokenizer.model", sha256, "bpe", vocabulary, BOS)
    dtype = next(iter(splits.values())).dtype.name
    write_manifest(folder, Manifest(info, dtype, block_tokens, infos, {}, "0.1.0"))
    return folder


def _write_split(folder: Path, ids: np.ndarray, block_tokens: int, per_shard: int) -> SplitInfo:
    blocks = [ids[i : i + block_tokens] for i in range(0, len(ids), block_tokens)]
    columns = {"tokens": f"ndarray:{ids.dtype.name}"}
    writer = import_streaming().MDSWriter
    # MDSWriter starts a new shard when the next sample would exceed ``size_limit``. Here shards
    # are ended by hand instead, so that the number of blocks per shard is exact.
    with writer(out=str(folder), columns=columns, hashes=["xxh3_64"], size_limit=None) as out:
        for i, block in enumerate(blocks):
            if i and i % per_shard == 0:
                out.flush_shard()
                out._reset_cache()
            out.write({"tokens": block})
    shards = []
    for i, path in enumerate(sorted(folder.glob("shard.*.mds"))):
        tokens = sum(len(block) for block in blocks[i * per_shard : (i + 1) * per_shard])
        data = path.read_bytes()
        shards.append(ShardInfo(path.name, len(data), tokens, xxhash.xxh3_64(data).hexdigest()))
    index_sha256 = sha256_of(folder / "index.json")
    return SplitInfo(len(ids), int((ids == BOS).sum()), 4 * len(ids), index_sha256, shards)


@pytest.fixture(scope="session")
def make_set() -> Callable[..., Path]:
    """Return the function :func:`write_set`."""
    return write_set


@pytest.fixture(scope="session")
def numbered() -> Callable[[int], np.ndarray]:
    """Return a function that makes n tokens: token o is o + 2, so that a read shows its offset."""
    return lambda n: np.arange(2, n + 2).astype(np.uint16)
