"""Files of token ids: every form gives the same documents, and bad files are refused."""

import dataclasses
import json
import struct

import numpy as np
import pytest

from gam_scale.data import tokens as t
from gam_scale.data.documents import TokenIds
from gam_scale.data.manifest import read_manifest
from gam_scale.data.mds import import_streaming
from gam_scale.data.prepare import PrepareSpec, prepare
from gam_scale.data.shards import TokenSplit
from gam_scale.data.sources import parse_source
from gam_scale.data.tokenizer_training import train_tokenizer
from gam_scale.data.tokens import TokenReading
from gam_scale.errors import UserError

TEXTS = [f"Document {i}: the lamp is lit. " * (1 + i % 7) for i in range(30)]
HOW = TokenReading((1,))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return train_tokenizer(TEXTS, path, 300)


@pytest.fixture(scope="module")
def ids(tokenizer):
    return [tokenizer.encode(text) for text in TEXTS]


def plain(path, ids, dtype="<u2"):
    """Write ids as nanoGPT does: the separator ends every document."""
    path.with_suffix(".bin").write_bytes(
        np.array([i for d in ids for i in [*d, 1]], dtype).tobytes()
    )
    return path.with_suffix(".bin")


def headed(path, ids, magic=20240520):
    """Write ids as llm.c and modded-nanogpt do: a header, and a separator before every document."""
    stream = np.array([i for d in ids for i in [1, *d]], t.LLM_C[magic])
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(stream)
    path.with_suffix(".bin").write_bytes(header.tobytes() + stream.tobytes())
    return path.with_suffix(".bin")


def numpy_stream(path, ids):
    stream = [i for d in ids for i in [1, *d]]
    stream += [1] * (-len(stream) % 4)
    np.save(path.with_suffix(".npy"), np.array(stream, np.uint32))
    return path.with_suffix(".npy")


def megatron(path, ids):
    """Write ids as Megatron does, with two sequences (sentences) and a separator per document."""
    sequences = [part for d in ids for part in (d[: len(d) // 2], [*d[len(d) // 2 :], 1])]
    lengths = np.array([len(s) for s in sequences], "<i4")
    starts = (np.cumsum(lengths) - lengths).astype("<i8") * 4
    path.with_suffix(".bin").write_bytes(np.concatenate(sequences).astype("<i4").tobytes())
    documents = np.arange(len(ids) + 1, dtype="<i8") * 2
    head = t.MEGATRON + struct.pack("<QBQQ", 1, 4, len(sequences), len(documents))
    arrays = lengths.tobytes() + starts.tobytes() + documents.tobytes()
    path.with_suffix(".idx").write_bytes(head + arrays)
    return path.with_suffix(".bin")


def mds(path, ids, encoding="ndarray:int32", compression=None, length=50):
    """Write ids as llm-foundry does: one stream in samples of ``length`` ids.

    Its earlier versions stored the bytes of int64 ids, which is the encoding "bytes".
    """
    stream = np.array([i for d in ids for i in [1, *d]], np.int64)
    options = {"compression": compression} if compression else {}
    with import_streaming().MDSWriter(
        out=str(path), columns={"tokens": encoding}, size_limit=4000, **options
    ) as out:
        for start in range(0, len(stream), length):
            part = stream[start : start + length]
            out.write({"tokens": part.tobytes() if encoding == "bytes" else part.astype(np.int32)})
    return path


def merged(path, ids, **options):
    """Write ids as several processes of llm-foundry do: a folder for each below a common index."""
    half = len(ids) // 2
    for name, part in (("0", ids[:half]), ("1", ids[half:])):
        mds(path / name, part, **options)
    import_streaming().base.util.merge_index(str(path), keep_local=True)
    return path


FORMS = {
    "plain": plain,
    "headed": headed,
    "headed, wide": lambda path, ids: headed(path, ids, 20240801),
    "numpy": numpy_stream,
    "megatron": megatron,
    "mds": mds,
    "mds of bytes": lambda path, ids: mds(path, ids, "bytes"),
    "mds in zstd": lambda path, ids: mds(path, ids, compression="zstd"),
    "mds in folders": merged,
    "mds in folders in zstd": lambda path, ids: merged(path, ids, compression="zstd"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_documents(tmp_path, monkeypatch, ids, form):
    monkeypatch.setattr(t, "READ_IDS", 37)
    source = parse_source(str(FORMS[form](tmp_path / "a", ids)), tokens=HOW)
    for _ in range(2):
        assert [document.ids.tolist() for document in source.documents()] == ids
    assert source.describe() == source.describe()
    assert not list(tmp_path.rglob("*.mds")) or "zstd" not in form, "unpacked in their folder"


def test_a_set_of_tokens_is_the_set_of_their_text(tmp_path, tokenizer, ids):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i:02}.txt").write_text(text)
    texts = [parse_source(str(tmp_path / "*.txt"))]
    given = dict(tokenizer=tmp_path / "tokenizer.model", valid_fraction=0.0)
    of_text = prepare(PrepareSpec(tmp_path / "text", texts, **given))
    for workers in (1, 2):
        source = parse_source(str(plain(tmp_path / "a", ids)), tokens=HOW)
        spec = PrepareSpec(tmp_path / f"set{workers}", [source], workers=workers, **given)
        assert prepare(spec).splits == of_text.splits
        assert prepare(spec) == read_manifest(spec.out), "not found made"
    held_out = dataclasses.replace(spec, out=tmp_path / "held", valid_fraction=0.2)
    splits = prepare(held_out).splits
    assert 0.15 < splits["valid"].bytes / of_text.splits["train"].bytes < 0.25
    read = TokenSplit(tmp_path / "held", "valid", tmp_path / "cache")
    assert read.read(0, 1) == [1]
    assert len(tokenizer.decode(read.read(0, read.tokens)).encode()) == read.info.bytes


def test_a_document_is_divided():
    head, tail = TokenIds(np.arange(100)).divide(40)
    assert (len(head), len(tail)) == (90, 10)
    assert TokenIds(np.arange(1)).divide(40) is None


def test_other_files(tmp_path, tokenizer, ids):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    given = dict(tokenizer=tmp_path / "tokenizer.model", valid_fraction=0.0)

    def refused(path, reason, how=HOW, **options):
        with pytest.raises(UserError, match=reason):
            source = parse_source(str(path), tokens=how)
            prepare(PrepareSpec(tmp_path / "set", [source], **(given | options)))
        assert not (tmp_path / "set").exists()

    path = plain(tmp_path / "a", ids)
    refused(path, "needs the tokenizer that made them; expected --tokenizer", tokenizer=None)
    refused(plain(tmp_path / "b", [[5, 300]]), "id 300 where the tokenizer has 300 ids")
    refused(path, "--token-dtype", TokenReading((1,), "uint32"))
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "no whole number of uint16")
    path = headed(tmp_path / "c", ids)
    path.write_bytes(path.read_bytes()[:-2])
    refused(path, "is cut short: its header has")
    path = megatron(tmp_path / "d", ids)
    path.write_bytes(path.read_bytes()[:-4])
    refused(path, r"d.idx: is not the index of d.bin \(d.bin has")
    path.with_suffix(".idx").write_bytes(b"MMID")
    refused(path, "does not begin as Megatron's")
    np.save(tmp_path / "e.npy", np.zeros(3))
    refused(tmp_path / "e.npy", "holds float64 of 1 dimensions")
    (tmp_path / "f.npy").write_bytes(b"no array")
    refused(tmp_path / "f.npy", "cannot be read as .npy")
    folder = tmp_path / "g"
    with import_streaming().MDSWriter(out=str(folder), columns={"image": "bytes"}) as out:
        out.write({"image": b"x"})
    refused(folder, "has columns image; expected ids in tokens or input_ids")


def test_rows_of_an_array_are_documents(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[5, 6, 1], [7, 1, 8]], np.uint16))
    source = parse_source(str(tmp_path / "a.npy"), tokens=HOW)
    assert [document.ids.tolist() for document in source.documents()] == [[5, 6], [7], [8]]


def test_damaged_shards_are_named(tmp_path, ids):
    path = mds(tmp_path / "a", ids)
    index = json.loads((path / "index.json").read_text())
    for change in (
        {"samples": "many"},
        {"column_names": None},
        {"raw_data": {}},
        {"column_encodings": ["str"]},
    ):
        shards = [{**shard, **change} for shard in index["shards"]]
        (path / "index.json").write_text(json.dumps(index | {"shards": shards}))
        with pytest.raises(UserError, match=r"index.json: shard 0 cannot be read"):
            list(parse_source(str(path), tokens=HOW).documents())
    (path / "index.json").write_text(json.dumps(index))
    (path / "shard.00000.mds").write_bytes(b"")
    with pytest.raises(UserError, match="shard 0 cannot be read"):
        list(parse_source(str(path), tokens=HOW).documents())


@pytest.mark.parametrize("name", ["../outside.mds", "/outside.mds", "a/../../outside.mds"])
def test_an_index_leads_out_of_no_folder(tmp_path, ids, name):
    """No set, wherever it comes from, makes its reader touch files outside of its folder."""
    path = mds(tmp_path / "a", ids, compression="zstd")
    index = json.loads((path / "index.json").read_text())
    for key in ("raw_data", "zip_data"):
        changed = [shard | {key: shard[key] | {"basename": name}} for shard in index["shards"]]
        (path / "index.json").write_text(json.dumps(index | {"shards": changed}))
        with pytest.raises(UserError, match="index.json: .*outside.mds.* leads out of"):
            list(parse_source(str(path), tokens=HOW).documents())


def test_an_account_of_a_folder_is_of_all_its_shards(tmp_path, ids):
    path = merged(tmp_path / "a", ids)
    before = parse_source(str(path), tokens=HOW).describe()
    shard = path / "1" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes() + b"x")
    assert parse_source(str(path), tokens=HOW).describe() != before


def test_a_folder_of_tokens_says_how_to_name_them(tmp_path, ids):
    (tmp_path / "a").mkdir()
    plain(tmp_path / "a" / "part", ids)
    with pytest.raises(UserError, match=r"no text, but tokens; expected a glob .*/a/\*\.bin'"):
        parse_source(str(tmp_path / "a"), tokens=HOW)
    mds(tmp_path / "b" / "train", ids)
    with pytest.raises(UserError, match="MDS shards of tokens below it; expected .*/b/train"):
        parse_source(str(tmp_path / "b"), tokens=HOW)


def test_wide_ids_are_not_read_as_narrow_ones(tmp_path, ids):
    wide = plain(tmp_path / "a", ids, "<u4")
    with pytest.raises(UserError, match="every second id of uint16 is 0.*--token-dtype uint32"):
        list(parse_source(str(wide), tokens=HOW).documents())
    source = parse_source(str(wide), tokens=TokenReading((1,), "uint32"))
    assert [document.ids.tolist() for document in source.documents()] == ids


def test_names_that_are_not_utf8(tmp_path, ids):
    (tmp_path / "a\udcff.bin").write_bytes(plain(tmp_path / "b", ids).read_bytes())
    (tmp_path / "b.bin").unlink()
    source = parse_source(str(tmp_path / "*.bin"), tokens=HOW)
    assert len(list(source.documents())) == len(TEXTS)
    json.dumps(source.describe()).encode()
