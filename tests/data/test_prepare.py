"""Preparing: the stream on disk, determinism, hold-out, idempotence and interruption."""

import dataclasses
import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from multiprocessing.synchronize import SemLock

import numpy as np
import pytest

from gam_scale.data import encode, place, tokenizer
from gam_scale.data import prepare as p
from gam_scale.data.holdout import choose, tail_start, utf8_size
from gam_scale.data.manifest import read_manifest, verify_files
from gam_scale.data.mds import import_streaming
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.rows import LeftOut
from gam_scale.data.tokenizer_file import load_tokenizer
from gam_scale.errors import UserError


def text(i: int) -> str:
    """Return document i; the lengths differ by up to a factor of a hundred."""
    return f"Document {i} says:\n" + f"  the quick brown fox number {i * i} jumps;\n" * (
        1 + i % 100
    )


@dataclass
class Listed:
    """A source of given documents; ``error`` is raised after them."""

    texts: list[str]
    error: BaseException | None = None
    text_bytes: int | None = field(default=None, init=False)
    left_out: LeftOut = field(default_factory=LeftOut, init=False)

    def documents(self):
        yield from self.texts
        if self.error:
            raise self.error

    def describe(self):
        return {"kind": "listed", "texts": len(self.texts)}


def spec_of(out, n=200, **options) -> PrepareSpec:
    return PrepareSpec(out, [Listed([text(i) for i in range(n)])], vocab_size=300, **options)


def read_split(folder, split) -> list[np.ndarray]:
    """Return the blocks of a split, read by the package streaming, whose format the shards have."""
    dataset = import_streaming().LocalDataset(str(folder / split))
    return [dataset[i]["tokens"] for i in range(len(dataset))]


def read_documents(folder, split) -> list[str]:
    model = load_tokenizer(folder / "tokenizer.model")
    stream = np.concatenate(read_split(folder, split))
    starts = np.flatnonzero(stream == model.bos_id)
    assert starts[0] == 0
    return [model.decode(ids) for ids in np.split(stream, starts[1:])]


def names(folder) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A set with all three splits and several blocks."""
    out = tmp_path_factory.mktemp("prepared") / "set"
    valid, test = [Listed([text(i) for i in (1000, 1001)])], [Listed([text(2)])]
    spec = spec_of(out, valid=valid, test=test)
    return out, spec, prepare(spec)


def test_the_text_comes_back(prepared):
    out, spec, _ = prepared
    for split in ("train", "valid", "test"):
        (source,) = getattr(spec, split)
        assert read_documents(out, split) == source.texts


def test_blocks_and_manifest(prepared):
    out, spec, manifest = prepared
    assert read_manifest(out) == manifest
    verify_files(out, manifest, hashes=True)
    assert manifest.block_tokens == 16384
    blocks = read_split(out, "train")
    train = manifest.splits["train"]
    assert len(blocks) > 5
    assert {len(block) for block in blocks[:-1]} == {16384}
    assert 0 < len(blocks[-1]) <= 16384
    assert {block.dtype for block in blocks} == {np.dtype(np.uint16)}
    assert sum(map(len, blocks)) == train.tokens == sum(shard.tokens for shard in train.shards)
    assert (train.documents, train.bytes) == (200, sum(len(text(i)) for i in range(200)))
    assert names(out.parent) == ["set"]
    assert names(out) == ["manifest.json", "test", "tokenizer.model", "train", "valid"]


def test_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(p, "SHARD_BYTES", 100_000)  # three blocks of 32 KiB
    manifest = prepare(spec_of(tmp_path / "set"))
    train = manifest.splits["train"]
    assert len(train.shards) > 1
    assert [shard.tokens for shard in train.shards[:-1]] == [3 * 16384] * (len(train.shards) - 1)
    assert sum(shard.tokens for shard in train.shards) == train.tokens


def test_workers_and_long_documents_change_nothing(prepared, tmp_path, monkeypatch):
    out, spec, manifest = prepared
    in_two = prepare(dataclasses.replace(spec, out=tmp_path / "two", workers=2))
    monkeypatch.setattr(encode, "BATCH_CHARS", 100)
    monkeypatch.setattr(tokenizer, "STRETCH_CHARS", 100)
    in_pieces = prepare(dataclasses.replace(spec, out=tmp_path / "pieces"))
    assert in_two == in_pieces == manifest
    first, second = (path / "train" / "shard.00000.mds" for path in (out, tmp_path / "two"))
    assert first.read_bytes() == second.read_bytes()


def test_a_word_longer_than_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "BATCH_CHARS", 100)
    monkeypatch.setattr(tokenizer, "STRETCH_CHARS", 100)
    documents = ["x" * 1000, "y " * 500, " " * 700 + "z"]
    spec = PrepareSpec(tmp_path / "set", [Listed(documents)], vocab_size=262, valid_fraction=0)
    prepare(spec)
    assert read_documents(tmp_path / "set", "train") == documents


def test_hold_out(tmp_path):
    manifest = prepare(spec_of(tmp_path / "a", valid_fraction=0.2))
    held = read_documents(tmp_path / "a", "valid")
    kept = read_documents(tmp_path / "a", "train")
    assert sorted(held + kept) == sorted(text(i) for i in range(200))
    assert held[0] == text(0)
    assert 20 <= len(held) <= 60  # 40 expected, with a standard deviation of 6
    assert manifest.splits["valid"].documents == len(held)
    # The same document is held out however many follow it.
    prepare(spec_of(tmp_path / "b", n=100, valid_fraction=0.2))
    assert read_documents(tmp_path / "b", "valid") == [
        t for t in held if t in map(text, range(100))
    ]


def test_hold_out_of_a_small_corpus(tmp_path):
    assert set(prepare(spec_of(tmp_path / "two", n=2)).splits) == {"train", "valid"}
    assert set(prepare(spec_of(tmp_path / "none", n=2, valid_fraction=0)).splits) == {"train"}
    model = tmp_path / "two" / "tokenizer.model"
    with pytest.raises(UserError, match="too short to hold any of it out"):
        prepare(PrepareSpec(tmp_path / "one", [Listed(["x"])], tokenizer=model))


def test_one_document_is_enough(tmp_path):
    """The commonest first corpus is one text file; its tail becomes the split valid."""
    document = text(99) * 5
    manifest = prepare(PrepareSpec(tmp_path / "set", [Listed([document])], vocab_size=300))
    (head,), (tail,) = (read_documents(tmp_path / "set", name) for name in ("train", "valid"))
    assert head + tail == document
    assert manifest.splits["valid"].bytes == len(tail) == pytest.approx(0.01 * len(document), 0.1)
    assert tail.startswith(" ")  # no word is cut in two


def held_share(sizes, fraction) -> float:
    """Hold out ``fraction`` of documents of ``sizes`` words; return the share of bytes held out."""
    words = [f"{i:04d} " * size for i, size in enumerate(sizes)]
    split = list(choose([len(document) for document in words], fraction).split(words))
    assert sorted("".join(t for _, t in split)) == sorted("".join(words)), "text was lost"
    held, kept = (sum(len(t) for name, t in split if name == s) for s in ("valid", "train"))
    return held / (held + kept)


@pytest.mark.parametrize("sizes", [[10_800, 400], [400, 10_800], [700] * 8, [9000], [1, 9000, 1]])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_the_asked_share_is_held_out_of_few_documents(sizes, fraction):
    assert abs(held_share(sizes, fraction) / fraction - 1) < 0.21, "not the share that was asked"


def test_the_asked_share_is_held_out_of_any_corpus():
    rng = random.Random(0)
    for _ in range(200):
        sizes = [int(10 ** rng.uniform(1, 4)) for _ in range(rng.randint(1, 60))]
        fraction = rng.uniform(0.01, 0.95)
        share = held_share(sizes, fraction)
        assert abs(share / fraction - 1) < 0.21 or sum(sizes) < 200, (
            f"held out {share} where {fraction} was asked: {sizes}"
        )


@pytest.mark.parametrize("text", ["漢字" * 1000, "é" * 9, "ab", "🧐" * 70_000, "a" * 200_000])
@pytest.mark.parametrize("n_bytes", [1, 2, 7, 150_000])
def test_a_tail_is_cut_at_a_character(text, n_bytes):
    start = tail_start(text, n_bytes)
    assert 0 < start < len(text), "an empty head or tail"
    size = len(text[start:].encode())
    one, all_but_one = len(text[-1].encode()), len(text[1:].encode())
    assert size == min(max(n_bytes // one, 1) * one, all_but_one)
    assert utf8_size(text) == len(text.encode())


def test_max_documents(tmp_path):
    manifest = prepare(spec_of(tmp_path / "set", max_documents=10, valid_fraction=0))
    assert manifest.splits["train"].documents == 10


def test_reused_tokenizer(prepared, tmp_path):
    out, _, _ = prepared
    spec = PrepareSpec(
        tmp_path / "set", [Listed(["other text", "more"])], tokenizer=out / "tokenizer.model"
    )
    manifest = prepare(spec)
    assert manifest.tokenizer == read_manifest(out).tokenizer
    assert read_documents(tmp_path / "set", "train") == ["other tex", "more"]
    assert prepare(spec) == manifest


def test_the_same_again_is_kept(tmp_path, capsys):
    spec = spec_of(tmp_path / "set")
    manifest = prepare(spec)
    before = (tmp_path / "set").stat().st_ino
    assert prepare(dataclasses.replace(spec, workers=2)) == manifest
    assert "already prepared" in capsys.readouterr().err
    assert (tmp_path / "set").stat().st_ino == before


def test_a_damaged_set_is_not_kept_silently(tmp_path):
    spec = spec_of(tmp_path / "set")
    prepare(spec)
    shard = tmp_path / "set" / "train" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="shard.00000.mds: is truncated"):
        prepare(spec)
    prepare(dataclasses.replace(spec, overwrite=True))
    verify_files(tmp_path / "set", read_manifest(tmp_path / "set"), hashes=True)


def test_another_set_is_refused_unless_overwritten(tmp_path):
    prepare(spec_of(tmp_path / "set"))
    other = spec_of(tmp_path / "set", n=150)
    with pytest.raises(UserError, match="other inputs or settings.*--overwrite"):
        prepare(other)
    manifest = prepare(dataclasses.replace(other, overwrite=True))
    assert read_manifest(tmp_path / "set") == manifest
    assert names(tmp_path) == ["set"]


def test_foreign_folders_are_never_replaced(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="is not a prepared set"):
        prepare(spec_of(tmp_path / "set", overwrite=True))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is not a prepared set"):
        prepare(spec_of(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot be made"):
        prepare(spec_of(tmp_path / "file" / "set"))
    (tmp_path / "set" / "thesis.tex").unlink()
    prepare(spec_of(tmp_path / "set"))  # an empty folder is as good as none


def test_no_semaphore_is_made_that_a_kill_of_all_processes_leaves(tmp_path, monkeypatch):
    made = []
    original = SemLock.__init__

    def note(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self._semlock.name)

    monkeypatch.setattr(SemLock, "__init__", note)
    prepare(dataclasses.replace(spec_of(tmp_path / "set"), workers=2))
    assert not made, "leftovers: named semaphores, which would stay in /dev/shm"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("defect")])
def test_interruption_leaves_nothing(prepared, tmp_path, error, workers):
    source = Listed([text(i) for i in range(50)], error)
    spec = PrepareSpec(
        tmp_path / "set", [source], tokenizer=prepared[0] / "tokenizer.model", workers=workers
    )
    with pytest.raises(type(error)):
        prepare(spec)
    assert names(tmp_path) == []


def test_interrupted_overwrite_keeps_the_old_set(tmp_path):
    manifest = prepare(spec_of(tmp_path / "set"))
    spec = PrepareSpec(
        tmp_path / "set", [Listed([text(1)], KeyboardInterrupt())], vocab_size=300, overwrite=True
    )
    with pytest.raises(KeyboardInterrupt):
        prepare(spec)
    assert names(tmp_path) == ["set"]
    assert read_manifest(tmp_path / "set") == manifest


def test_leftovers_of_dead_runs_are_cleared(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    out = tmp_path / "set"
    prefix = place._leftover_prefix(out)
    leftovers = [f"{prefix}{dead.pid}", f"{prefix}{os.getppid()}", f"{prefix}x", ".set.partial-"]
    for name in leftovers:
        (tmp_path / name / "train").mkdir(parents=True)
    prepare(spec_of(out))
    assert names(tmp_path) == sorted([*leftovers[1:], "set"])


def test_leftovers_of_another_host_are_cleared_once_they_are_old(tmp_path, monkeypatch):
    for name in (".set.partial-node-7-41", ".set.partial-node-7-41-old", ".set.partial-node-7-x"):
        (tmp_path / name / "train").mkdir(parents=True)
    before = names(tmp_path)
    prepare(spec_of(tmp_path / "set"))
    assert names(tmp_path) == [*before, "set"]  # their processes may be at work
    monkeypatch.setattr(place, "SILENT_S", 0.0)
    prepare(spec_of(tmp_path / "set"))
    assert names(tmp_path) == [".set.partial-node-7-x", "set"], "leftovers: of another host stay"


def test_a_set_caught_between_two_renames_comes_back(tmp_path):
    out = tmp_path / "set"
    manifest = prepare(spec_of(out))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    os.rename(out, tmp_path / f"{place._leftover_prefix(out)}{dead.pid}{place.OLD_SUFFIX}")
    assert prepare(spec_of(out)) == manifest
    assert names(tmp_path) == ["set"]


def test_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(p.SplitWriter, "add", full)
    with pytest.raises(UserError, match="no space left") as error:
        prepare(spec_of(tmp_path / "set"))
    assert str(tmp_path) in str(error.value)
    assert names(tmp_path) == []


def test_a_killed_worker_is_explained(prepared, tmp_path, monkeypatch):
    def documents(self):
        yield from self.texts
        for pid in multiprocessing.active_children():
            os.kill(pid.pid, signal.SIGKILL)
        yield from self.texts

    monkeypatch.setattr(Listed, "documents", documents)
    source = Listed([text(99) * 100] * 20)
    spec = PrepareSpec(
        tmp_path / "set", [source], tokenizer=prepared[0] / "tokenizer.model", workers=2
    )
    with pytest.raises(UserError, match="was killed"):
        prepare(spec)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"train": [Listed([])]}, "no text to train a tokenizer on"),
        ({"valid": [Listed([])]}, "--valid: there is no text"),
        ({"test": [Listed([])]}, "--test: there is no text"),
        ({"vocab_size": 100_000}, "vocabulary of 100000 is too large"),
        ({"tokenizer": "missing.model"}, "missing.model: no such file"),
    ],
)
def test_bad_specs(tmp_path, options, reason):
    with pytest.raises(UserError, match=reason):
        prepare(dataclasses.replace(spec_of(tmp_path / "set"), **options))
    assert names(tmp_path) == []


def test_empty_training_text_with_a_tokenizer(prepared, tmp_path):
    spec = PrepareSpec(tmp_path / "set", [Listed([])], tokenizer=prepared[0] / "tokenizer.model")
    with pytest.raises(UserError, match="--train: there is no text"):
        prepare(spec)
