"""Reading a split: any range, local and cached; every fault of a file is named."""

import errno
import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import needs
import numpy as np
import pytest

from gam_scale import remote
from gam_scale.data import set_files, shards
from gam_scale.data.manifest import ShardInfo
from gam_scale.data.shards import TokenSplit
from gam_scale.errors import UserError

MakeSet = Callable[..., Path]
Numbered = Callable[[int], np.ndarray]


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 65, 300])
def test_every_range_of_a_split(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, length: int
) -> None:
    ids = numbered(length)
    split = TokenSplit(make_set(tmp_path / "set", {"train": ids}), "train", tmp_path / "cache")
    assert split.tokens == length
    starts = {0, 1, 15, 16, 17, 63, 64, 65, 128, length - 1, length}
    for start in (s for s in starts if s <= length):
        for end in range(start, length + 1, 7):
            assert np.array_equal(split.read(start, end - start), ids[start:end])
        assert np.array_equal(split.read(start, length - start), ids[start:])
    assert split.read(0, length).dtype == np.uint16
    assert not (tmp_path / "cache").exists(), "a local set needs no cache"


def test_few_shards_stay_open_and_each_is_verified_once(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = numbered(300)
    split = TokenSplit(make_set(tmp_path / "set", {"train": ids}), "train", tmp_path / "cache")
    n = len(split.info.shards)
    assert n > 3
    monkeypatch.setattr(shards, "OPEN_SHARDS", 2)
    hashed, verify = [], shards.verify_shard

    def counted(path: Path, info: ShardInfo, *, hashes: bool) -> None:
        hashed.extend([info.file] if hashes else [])
        verify(path, info, hashes=hashes)

    monkeypatch.setattr(shards, "verify_shard", counted)
    for start in [*range(0, 290, 10), *range(280, -1, -10)]:
        assert np.array_equal(split.read(start, 10), ids[start : start + 10])
        assert len(split._open) <= 2
    assert sorted(hashed) == sorted({info.file for info in split.info.shards[:-1]})


def test_wide_ids(tmp_path: Path, make_set: MakeSet) -> None:
    ids = (np.arange(100) + 2**31).astype(np.uint32)
    split = TokenSplit(make_set(tmp_path / "set", {"valid": ids}), "valid", tmp_path)
    assert np.array_equal(split.read(10, 80), ids[10:90])


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (0, 101), (100, 1), (50, -1)])
def test_out_of_range_is_a_defect(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, start: int, length: int
) -> None:
    split = TokenSplit(make_set(tmp_path / "set", {"train": numbered(100)}), "train", tmp_path)
    with pytest.raises(AssertionError):
        split.read(start, length)


def test_what_is_no_prepared_set(tmp_path: Path, make_set: MakeSet, numbered: Numbered) -> None:
    with pytest.raises(UserError, match=r"nowhere/manifest.json: no such file"):
        TokenSplit(tmp_path / "nowhere", "train", tmp_path)
    folder = make_set(tmp_path / "set", {"train": numbered(9), "valid": numbered(9)})
    with pytest.raises(UserError, match=r"set has no split 'test'; expected one of train, valid"):
        TokenSplit(folder, "test", tmp_path)


def test_sizes_are_checked_when_opened(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    folder = make_set(tmp_path / "set", {"train": numbered(300), "valid": numbered(20)})
    shard = folder / "train" / "shard.00003.mds"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"train/shard.00003.mds: is truncated"):
        TokenSplit(folder, "train", tmp_path)
    assert TokenSplit(folder, "valid", tmp_path).tokens == 20
    shard.unlink()
    with pytest.raises(UserError, match=r"train/shard.00003.mds: is missing"):
        TokenSplit(folder, "train", tmp_path)


def test_content_is_checked_at_first_use(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    ids = numbered(300)
    folder = make_set(tmp_path / "set", {"train": ids})
    flip_last_byte(folder / "train" / "shard.00001.mds")  # tokens 64 to 127
    split = TokenSplit(folder, "train", tmp_path)
    assert np.array_equal(split.read(0, 64), ids[:64])
    with pytest.raises(UserError, match=r"train/shard.00001.mds: its content has changed"):
        split.read(0, 65)


def test_changed_index_and_tokenizer_are_named(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    folder = make_set(tmp_path / "set", {"train": numbered(20)})
    for name in ("tokenizer.model", "train/index.json"):
        data = (folder / name).read_bytes()
        flip_last_byte(folder / name)
        with pytest.raises(UserError, match=f"{name}: its content has changed"):
            TokenSplit(folder, "train", tmp_path)
        (folder / name).write_bytes(data)


def test_manifest_and_index_must_agree(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    folder = make_set(tmp_path / "set", {"train": numbered(300)}, block_tokens=16)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]  # as in a set of an earlier version
    manifest["block_tokens"] = 8
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train/index.json: does not describe the blocks"):
        TokenSplit(folder, "train", tmp_path)


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("tokens", 1, "shard.00000.mds: does not hold the 51 tokens"),
        ("tokens", -1, "shard.00000.mds: does not hold the 49 tokens"),
        ("vocab_size", -741, "shard.00000.mds: holds id 300 where .* a vocabulary of 259"),
    ],
)
def test_an_older_manifest_is_checked_by_its_shards(
    tmp_path: Path, make_set: MakeSet, key: str, change: int, reason: str
) -> None:
    ids = np.full(50, 300, np.uint16)
    folder = make_set(tmp_path / "set", {"train": ids})
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["checksum"]
    train = manifest["splits"]["train"]
    holders = [manifest["tokenizer"]] if key == "vocab_size" else [train, train["shards"][-1]]
    for holder in holders:
        holder[key] += change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=reason):
        TokenSplit(folder, "train", tmp_path)


def test_a_url_is_copied_as_it_is_read(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    ids = numbered(300)
    folder = make_set(tmp_path / "set", {"train": ids, "valid": ids[:20]})
    split = TokenSplit(f"file://{folder}", "train", tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    assert split.tokenizer_file == cached / "tokenizer.model"
    assert not list(cached.rglob("*.mds"))
    assert np.array_equal(split.read(60, 10), ids[60:70])
    assert sorted(p.name for p in cached.rglob("*.mds")) == ["shard.00000.mds", "shard.00001.mds"]
    assert not list(cached.rglob("*.partial"))
    shutil.rmtree(folder)
    again = TokenSplit(f"file://{folder}/", "train", tmp_path / "cache")
    assert np.array_equal(again.read(60, 10), ids[60:70]), "what is cached needs no source"
    with pytest.raises(UserError, match=r"file://.*/train/shard.00002.mds: cannot be downloaded"):
        again.read(128, 1)


def test_faults_behind_a_url_are_told_apart(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    ids = numbered(300)
    folder = make_set(tmp_path / "set", {"train": ids})
    split = TokenSplit(f"file://{folder}", "train", tmp_path / "cache")
    source = folder / "train" / "shard.00001.mds"
    good = source.read_bytes()
    source.write_bytes(good[:-1])
    with pytest.raises(UserError, match=r"file://.*shard.00001.mds: is not the shard that"):
        split.read(64, 1)
    source.write_bytes(good)
    assert split.read(64, 1)[0] == ids[64], "nothing broken was kept"

    (cached,) = (tmp_path / "cache").rglob("shard.00001.mds")
    flip_last_byte(cached)
    split = TokenSplit(f"file://{folder}", "train", tmp_path / "cache")
    with pytest.raises(UserError, match=rf"{cached}: its content has changed.*delete"):
        split.read(64, 1)
    cached.write_bytes(good[:-1])
    with pytest.raises(UserError, match=rf"{cached}: is truncated.*delete"):
        TokenSplit(f"file://{folder}", "train", tmp_path / "cache")


def test_urls_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gopher://set/manifest.json: cannot be downloaded"):
        TokenSplit("gopher://set", "train", tmp_path / "cache")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*expected data.cache_dir"):
        TokenSplit("file:///set", "train", tmp_path / "file")


def test_a_cache_with_a_limit_keeps_what_was_used_last(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = numbered(300)
    folder, cache = make_set(tmp_path / "set", {"train": ids}), tmp_path / "cache"
    mine = cache / ("0" * 15) / "train" / "mine.mds"  # in no folder of a set
    mine.parent.mkdir(parents=True)
    mine.write_bytes(bytes(10_000))
    size = (folder / "train" / "shard.00000.mds").stat().st_size
    split = TokenSplit(f"file://{folder}", "train", cache, cache_limit=2.5 * size)
    monkeypatch.setattr(shards, "OPEN_SHARDS", 1)

    def here() -> list[int]:
        return sorted(int(path.name.split(".")[1]) for path in cache.glob("*/train/shard.*.mds"))

    for number in (0, 1, 0, 2, 0, 3):  # shard 0 is always among the last two
        assert split.read(64 * number, 5)[0] == ids[64 * number]
        assert 0 in here() and number in here() and len(here()) <= 2
    again = TokenSplit(f"file://{folder}", "train", cache, cache_limit=2.5 * size)
    for start in range(0, 290, 10):
        assert np.array_equal(again.read(start, 10), ids[start : start + 10])
    assert mine.exists()


def test_a_shard_that_another_process_deletes_is_fetched_again(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = numbered(100)
    folder = make_set(tmp_path / "set", {"train": ids})
    split = TokenSplit(f"file://{folder}", "train", tmp_path / "cache", cache_limit=1e9)
    verify, times = shards.verify_shard, 3

    def delete_first(path: Path, info: ShardInfo, *, hashes: bool) -> None:
        nonlocal times
        times -= 1
        if times >= 0:
            path.unlink()
        verify(path, info, hashes=hashes)

    monkeypatch.setattr(shards, "verify_shard", delete_first)
    assert split.read(64, 1)[0] == ids[64] and times < 0
    times = 99
    with pytest.raises(UserError, match="was deleted by another process before it was read, 5"):
        split.read(0, 1)


@pytest.mark.parametrize(
    ("error", "tries", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "no space is left for"),
        (type("LocalEntryNotFoundError", (FileNotFoundError,), {})("the hub"), 4, "the hub"),
        (FileNotFoundError("no such object"), 1, "no such object"),
    ],
)
def test_which_failed_downloads_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int, said: str
) -> None:
    tried = []

    def fail(source: str, target: str) -> None:
        tried.append(source)
        raise error

    downloader = shards.import_streaming().base.storage.CloudDownloader
    monkeypatch.setattr(downloader, "direct_download", fail)
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    with pytest.raises(UserError, match=said):
        TokenSplit("s3://bucket/set", "train", tmp_path / "cache")
    assert len(tried) == tries


def test_downloads_are_tried_again(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_set(tmp_path / "set", {"train": numbered(20)})
    downloader = shards.import_streaming().base.storage.CloudDownloader
    download, failures = downloader.direct_download, [ConnectionError("reset"), OSError("cut")]

    def unreliable(source: str, target: str) -> None:
        if failures:
            Path(target).write_bytes(b"half of")
            raise failures.pop()
        download(source, target)

    waits: list[float] = []
    monkeypatch.setattr(downloader, "direct_download", unreliable)
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    assert TokenSplit(f"file://{folder}", "train", tmp_path / "cache").tokens == 20
    assert waits == list(remote.RETRY_SECONDS[:2])

    failures += [ConnectionError("down")] * 10
    with pytest.raises(UserError, match=r"cannot be downloaded \(ConnectionError: down\)"):
        TokenSplit(f"file://{folder}", "train", tmp_path / "other")


def _open_and_read(url: str, cache: Path, barrier, log: Path, done) -> None:
    """Read a split as one process of a node, and log a line for every file that it downloads."""
    download = set_files._download

    def logged(source: str, target: Path) -> None:
        with open(log, "a") as file:  # one short line: appended in one piece
            file.write(f"{Path(source).name}\n")
        download(source, target)

    set_files._download = logged
    barrier.wait()
    split = TokenSplit(url, "train", cache)
    done.put(int(split.read(0, split.tokens).astype(np.int64).sum()))


@needs.fork
def test_processes_of_a_node_download_once(
    tmp_path: Path, make_set: MakeSet, numbered: Numbered
) -> None:
    ids = numbered(300)
    folder = make_set(tmp_path / "set", {"train": ids})
    context = multiprocessing.get_context("fork")
    barrier, done = context.Barrier(3), context.Queue()
    log = tmp_path / "log"
    arguments = (f"file://{folder}", tmp_path / "cache", barrier, log, done)
    processes = [context.Process(target=_open_and_read, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    sums = [done.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sums == [int(ids.astype(np.int64).sum())] * 3
    downloaded = log.read_text().split()
    assert len(downloaded) == len(set(downloaded)) == 3 + 5  # manifest, tokenizer, index; shards
