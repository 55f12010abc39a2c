"""The manifest: round trip, refusals that name the file, and the check of a set's files."""

import dataclasses
import json
import os

import pytest

from gam_scale.data import manifest as m
from gam_scale.errors import UserError


@pytest.fixture
def prepared(tmp_path):
    """A folder with files and a manifest that fits them; the files need not be MDS shards."""
    (tmp_path / "tokenizer.model").write_bytes(b"model")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "index.json").write_text("{}")
    shards = []
    for i, data in enumerate((b"a" * 100, b"b" * 50)):
        path = tmp_path / "train" / f"shard.0000{i}.mds"
        path.write_bytes(data)
        digest = m._digest(path, m.xxhash.xxh3_64())
        shards.append(m.ShardInfo(path.name, len(data), 10, digest))
    index = m.sha256_of(tmp_path / "train" / "index.json")
    model = m.sha256_of(tmp_path / "tokenizer.model")
    manifest = m.Manifest(
        tokenizer=m.TokenizerInfo("tokenizer.model", model, "bpe", 300, 1),
        dtype="uint16",
        block_tokens=16384,
        splits={"train": m.SplitInfo(20, 3, 80, index, shards)},
        source={"train": [{"kind": "python-stdlib", "größe": None}]},
        code_version="0.1.0",
    )
    m.write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_round_trip(prepared):
    folder, manifest = prepared
    assert m.read_manifest(folder) == manifest
    data = json.loads((folder / "manifest.json").read_text())
    assert (data["format"], data["version"]) == ("gam-scale-tokens", 1)
    assert data["splits"]["train"]["shards"][1]["bytes"] == 50
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_intact_files_pass(prepared):
    folder, manifest = prepared
    m.verify_files(folder, manifest, hashes=True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no such file"),
        ("", "not valid JSON"),
        ('{"format": "gam-scale-tokens", "vers', "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1, "format": 2}', '"format" stands twice'),
        ("[]", "is not a manifest"),
        ('{"format": "something else"}', "is not a manifest"),
        ('{"format": "gam-scale-tokens", "version": 2}', "version 2 is unknown"),
        ('{"format": "gam-scale-tokens", "version": 1}', "tokenizer is missing"),
    ],
)
def test_refuses_what_is_no_manifest(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=reason) as error:
        m.read_manifest(tmp_path)
    assert str(tmp_path / "manifest.json") in str(error.value)


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("dtype",), "float32", 'dtype is "float32"; expected one of "uint16", "uint32"'),
        (("block_tokens",), 0, "block_tokens is 0"),
        (("block_tokens",), "16", "block_tokens is .*expected a whole number"),
        (("splits", "train", "tokens"), 21, "21 tokens but its shards hold 20"),
        (("splits", "train", "tokens"), -1, "tokens is -1"),
        (("splits", "train", "documents"), None, "documents is null; expected a whole number"),
        (("splits", "train", "shards", 1, "bytes"), 1.5, r"shards\[1\].bytes is 1.5"),
        (("splits", "train", "shards", 0, "file"), "../x", "not a plain file name"),
        (("tokenizer", "file"), "/etc/passwd", "not a plain file name"),
        (("splits",), [], r"splits is \[\]; expected an object"),
        (("splits", "train", "tokens"), 0, "0 tokens but its shards hold 20"),
        (("splits", "train", "shards", 0, "tokens"), 0, "tokens is 0; expected at least 1"),
        (("splits", "train", "bytes"), 0, "20 tokens in 3 documents of 0 bytes"),
        (("splits", "train", "bytes"), 16, "20 tokens in 3 documents of 16 bytes"),
        (("splits", "train", "documents"), 21, "20 tokens in 21 documents"),
        (("tokenizer", "bos_id"), 300, "bos_id is 300; expected an id below 300"),
        (("tokenizer", "vocab_size"), 1, "vocab_size is 1; expected at least 2"),
        (("splits", "train", "shards", 1), 7, r"shards\[1\] is 7; expected an object"),
    ],
)
def test_names_the_field_that_is_wrong(prepared, keys, value, reason):
    """In an older set, whose manifest has no checksum, only the numbers themselves show a fault."""
    folder, manifest = prepared
    data = json.loads((folder / "manifest.json").read_text())
    del data["checksum"]
    (folder / "manifest.json").write_text(json.dumps(data))
    assert m.read_manifest(folder) == manifest, "an older set is refused"
    set_in(data, keys, value)
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=reason) as error:
        m.read_manifest(folder)
    assert str(folder / "manifest.json") in str(error.value)


def set_in(data, keys, value) -> None:
    for key in keys[:-1]:
        data = data[key]
    data[keys[-1]] = value


def paths(node, above=()):
    """Yield the keys and indices that lead to each value in parsed JSON."""
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield from paths(node[key], (*above, key))
    else:
        yield above


def test_every_changed_value_of_the_manifest_is_found(prepared):
    folder, manifest = prepared
    path = folder / "manifest.json"
    text = path.read_text()
    for keys in paths(json.loads(text)):
        for value in (0, 2, "x", None):
            data = json.loads(text)
            set_in(data, keys, value)
            if data == json.loads(text):
                continue
            path.write_text(json.dumps(data))
            with pytest.raises(UserError, match=r"manifest\.json"):
                pytest.fail(f"taken though changed at {keys}: {m.read_manifest(folder)}")
    path.write_text(json.dumps(json.loads(text)))  # another layout of the file is right, too
    assert m.read_manifest(folder) == manifest


def test_pipes_in_place_of_files_do_not_hang(prepared):
    folder, manifest = prepared
    for name in ("train/index.json", "train/shard.00001.mds", "tokenizer.model", "manifest.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with pytest.raises(UserError, match="pipe|truncated"):
            m.verify_files(folder, m.read_manifest(folder), hashes=True)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)
    m.verify_files(folder, manifest, hashes=True)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("tokenizer.model", "changed"),
        ("train/index.json", "changed"),
        ("train/shard.00001.mds", "truncated: 49 bytes where the manifest has 50"),
    ],
)
def test_truncation_is_named(prepared, file, reason):
    folder, manifest = prepared
    path = folder / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=reason) as error:
        m.verify_files(folder, manifest, hashes=False)
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        m.verify_files(folder, manifest, hashes=False)


def test_a_flipped_byte_is_found_by_hashes_alone(prepared):
    folder, manifest = prepared
    path = folder / "train" / "shard.00000.mds"
    path.write_bytes(b"a" * 99 + b"c")
    m.verify_files(folder, manifest, hashes=False)
    with pytest.raises(UserError, match="shard.00000.mds: its content has changed"):
        m.verify_files(folder, manifest, hashes=True)


def test_a_failed_write_leaves_the_old_manifest(prepared, monkeypatch):
    folder, manifest = prepared
    monkeypatch.setattr(m.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        m.write_manifest(folder, dataclasses.replace(manifest, code_version="9"))
    assert m.read_manifest(folder).code_version == "0.1.0"
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
