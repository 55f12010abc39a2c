"""The manifest: round trip, refusals that name the file, and the check of a set's files."""

import dataclasses
import json
import os

import pytest

from gam_scale.data import manifest as m
from gam_scale.errors import UserError


@pytest.fixture
def prepared(tmp_path):
    """A folder with files and a manifest that fits them; no MDS needed."""
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
        ("", "cut short"),
        ('{"format": "gam-scale-tokens", "vers', "cut short"),
        ("[]", "is not a manifest"),
        ('{"format": "something else"}', "is not a manifest"),
        ('{"format": "gam-scale-tokens", "version": 2}', "version 2 is unknown"),
        ('{"format": "gam-scale-tokens", "version": 1}', "tokenizer is null; expected dict"),
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
        (("dtype",), "float32", "dtype is 'float32'; expected uint16 or uint32"),
        (("block_tokens",), 0, "block_tokens is 0"),
        (("block_tokens",), "16", "block_tokens is .*expected int"),
        (("splits", "train", "tokens"), 21, "21 tokens but its shards hold 20"),
        (("splits", "train", "tokens"), -1, "tokens is -1"),
        (("splits", "train", "documents"), None, "documents is null; expected int"),
        (("splits", "train", "shards", 1, "bytes"), 1.5, r"shards\[1\]: bytes is 1.5"),
        (("splits", "train", "shards", 0, "file"), "../x", "not a plain file name"),
        (("tokenizer", "file"), "/etc/passwd", "not a plain file name"),
        (("splits",), [], r"splits is \[\]; expected dict"),
    ],
)
def test_names_the_field_that_is_wrong(prepared, keys, value, reason):
    folder, _ = prepared
    data = json.loads((folder / "manifest.json").read_text())
    node = data
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=reason):
        m.read_manifest(folder)


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
