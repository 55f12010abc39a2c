"""A checkpoint is trusted only if all of it fits together; what is damaged or forged is named."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import adamw, save, shards_of, small_model, trained, whole
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from whole_runs import reseal

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.restore import restore
from gam_scale.checkpoint.state import TrainState, load_state
from gam_scale.checkpoint.store import CheckpointStore, load_model
from gam_scale.checkpoint.verify import read_checksums, verify_checkpoint
from gam_scale.config import RunConfig
from gam_scale.errors import UserError
from gam_scale.parallel.plain import PlainStrategy
from gam_scale.parallel.world import World
from gam_scale.train.saver import Saver
from gam_scale.train.start import newest_sound

KEY, OTHER = "param.embedding.weight", "exp_avg.embedding.weight"
SHARDS = ("shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """Save a checkpoint of two ranks; return its path."""
    return save(tmp_path_factory.mktemp("sound"), 3, n_ranks=2).latest()


@pytest.fixture
def path(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "step-00000003")


def load(path: Path) -> None:
    """Load a checkpoint as every tool does."""
    verify_checkpoint(path)
    load_state(path)
    load_model(path, small_model())


def refused(path: Path, kind: str) -> str:
    try:
        load(path)
    except UserError as error:
        assert "\n" not in str(error), f"{kind}: more than a sentence"
        return str(error)
    pytest.fail(f"{kind}: was believed")


def rewrite(file: Path, change) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))


def shape(value):
    return lambda index: index["tensors"][KEY].update(shape=value)


def parts(change):
    def apply(index):
        index["tensors"][KEY]["parts"] = change(index["tensors"][KEY]["parts"])

    return apply


def file_name(name):
    return parts(lambda p: [[name, *p[0][1:]], *p[1:]])


FORGED = {
    "a list": lambda index: [1],
    "no tensors": lambda index: {"format": 1},
    "an unknown key": lambda index: index | {"more": 1},
    "another format": lambda index: index | {"format": 3},
    "the format before": lambda index: index | {"format": 1},
    "another dtype": lambda index: index["tensors"][KEY].update(dtype="F64"),
    "an unknown dtype": lambda index: index["tensors"][OTHER].update(dtype="F31"),
    "a part is missing": parts(lambda p: p[:1]),
    "no parts": parts(lambda p: []),
    "a gap": parts(lambda p: [p[0], [p[1][0], [6, 0], [5, 8]]]),
    "a part too far down": parts(lambda p: [p[0], [p[1][0], [6, 0], [6, 8]]]),
    "an overlap": parts(lambda p: [p[0], [p[1][0], [4, 0], [6, 8]]]),
    "a negative part": parts(lambda p: [["x", [0, 0], [-1, 8]], *p]),
    "a negative place": parts(lambda p: [p[0], [p[1][0], [5, -1], [6, 8]]]),
    "a part that is a range beside one that is a box": parts(
        lambda p: [p[0], [p[1][0], [40], [48]]]
    ),
    "a place of three dimensions": parts(lambda p: [p[0], [p[1][0], [5, 0, 0], [6, 8, 1]]]),
    "too long": parts(lambda p: [p[0], [p[1][0], [5, 0], [7, 8]]]),
    "a huge shape": shape([2**62, 2**62]),
    "a negative shape": shape([-11, -8]),
    "a shape of words": shape(["11", 8]),
    "a shape of zeros": shape([0, 8]),
    "another shape of the same size": shape([8, 11]),
    "a part of null": parts(lambda p: None),
    "a part too short": parts(lambda p: [p[0][:2], p[1]]),
    "both parts in one file": parts(lambda p: [p[0], [p[0][0], *p[1][1:]]]),
    "another kind": lambda index: index["tensors"].update({"other.x": index["tensors"][KEY]}),
    "no kind": lambda index: index["tensors"].update({"x": index["tensors"][KEY]}),
    "a moment of nothing": lambda index: index["tensors"].update(
        {"exp_avg.x": index["tensors"][KEY]}
    ),
    "a tensor less": lambda index: {**index, "tensors": dict(list(index["tensors"].items())[1:])},
    "a path above": file_name(f"../step-00000003/{SHARDS[0]}"),
    "an absolute path": file_name("/etc/passwd"),
    "a device": file_name("/dev/zero"),
    "no name": file_name(""),
    "the folder": file_name("."),
    "a file that is not there": file_name("shard-00007-of-00002.safetensors"),
    "a file of another kind": file_name("state.json"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_index_with_right_sums_is_refused(path, kind):
    rewrite(path / "index.json", FORGED[kind])
    reseal(path)
    refused(path, f"index.json: {kind}")
    if kind != "a file that is not there":
        with pytest.raises(UserError):  # also where nobody verified it before
            load_model(path, small_model())


def header(file: Path, change) -> None:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(data[8 : 8 + length])
    text = json.dumps(change(content) or content).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def entry(**values):
    return lambda content: content[KEY].update(values)


FORGED_HEADERS = {
    "another type": entry(dtype="F64"),
    "a type of half the size": entry(dtype="F16"),
    "an unknown type": entry(dtype="X"),
    "another shape": entry(shape=[5, 7]),
    "one dimension": entry(shape=[40]),
    "offsets past the end": entry(data_offsets=[1 << 40, (1 << 40) + 160]),
    "negative offsets": entry(data_offsets=[-160, 0]),
    "offsets of another tensor": lambda content: content[KEY].update(
        data_offsets=content[OTHER]["data_offsets"]
    ),
    "a tensor less": lambda content: {k: v for k, v in content.items() if k != KEY},
    "a tensor more": lambda content: content | {"param.x": content[KEY]},
    "a list": lambda content: [1],
}


@pytest.mark.parametrize("kind", FORGED_HEADERS)
def test_a_forged_shard_with_right_sums_is_refused(path, kind):
    header(path / SHARDS[0], FORGED_HEADERS[kind])
    reseal(path)
    refused(path, f"shard: {kind}")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 40, (2**60).to_bytes(8, "little")])
def test_a_shard_that_is_no_safetensors_file_is_refused(path, content):
    (path / SHARDS[1]).write_bytes(content)
    reseal(path)
    refused(path, f"shard: {content[:9]}")
    (path / SHARDS[1]).unlink()
    os.mkfifo(path / SHARDS[1])
    refused(path, "shard: a pipe")


@pytest.mark.parametrize("name", ["checksums.json", "index.json", "state.json", "config.json"])
def test_damaged_json_is_refused_whatever_it_is(path, name):
    """Other content replaces the file, or one bit is flipped in one of 40 sampled bytes."""
    good, rng = (path / name).read_bytes(), random.Random(0)
    for content in (b"", b"{}", b"[]", b"null", b"7", b'{"a": 1}', b"[" * 100_000, b"\xff"):
        (path / name).write_bytes(content)
        refused(path, f"{name}: {content[:9]}")
    for place in rng.sample(range(len(good)), 40):
        if good[place : place + 1].isspace() and name == "checksums.json":
            continue
        damaged = bytearray(good)
        damaged[place] ^= 1 << rng.randrange(7)
        (path / name).write_bytes(damaged)
        refused(path, f"{name}: byte {place} flipped")


@pytest.mark.parametrize("name", ["state.json", "index.json", "tokenizer.model", SHARDS[0]])
def test_a_file_that_is_not_listed_is_not_vouched_for(path, name):
    sums = read_checksums(path)
    (path / name).write_bytes(b"7" * 50_000)
    del sums[name]
    (path / "checksums.json").write_text(json.dumps(sums))  # as format 1 had it
    assert f"does not list {name}" in refused(path, f"checksums.json without {name}")


def test_checkpoints_of_format_1_stay_readable(path):
    (path / "checksums.json").write_text(json.dumps(read_checksums(path), indent=2))
    load(path)
    (path / SHARDS[0]).write_bytes(b"x" + (path / SHARDS[0]).read_bytes()[1:])
    assert "differs from what was saved" in refused(path, "a damaged shard of format 1")


@pytest.fixture
def former(path) -> Path:
    """Rewrite the checkpoint in format 1: parts are ranges, and there is one count of steps."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        kept = {k: v.flatten() for k, v in load_file(file).items() if not k.startswith("step.")}
        save_file(kept, file)
        for key, value in kept.items():
            shape = list(CanonicalTensors(path).content()[key][0])
            tensor = tensors.setdefault(key, {"shape": shape, "parts": []})
            start = tensor["parts"][-1][2] if tensor["parts"] else 0
            tensor["parts"].append([file.name, start, start + len(value)])
    (path / "index.json").write_text(json.dumps({"format": 1, "tensors": tensors}))
    reseal(path)
    return path


def test_tensors_of_format_1_stay_readable(sound, former):
    load(former)
    today = CanonicalTensors(sound)
    for key in CanonicalTensors(former).tensors:
        kind, name = key.split(".", 1)
        assert torch.equal(whole(CanonicalTensors(former), key), whole(today, key)), key
        shape = today.content()[key][0]
        box = (1,) * len(shape), (2,) * len(shape)
        if min(shape) > 2:
            ours, theirs = (CanonicalTensors(p).read(kind, name, *box) for p in (former, sound))
            assert torch.equal(ours, theirs), key


def test_an_optimizer_goes_on_from_format_1(sound, former):
    """Format 1 has a single count of steps for all parameters, in the train state."""
    alone, results = World(0, 1, 0, 1, torch.device("cpu")), []
    for checkpoint in (sound, former):
        model = small_model()
        strategy = PlainStrategy(model, adamw(model), alone, "fp32")
        restore(strategy, checkpoint)
        results.append({s.key: s.data.clone() for s in strategy.shards()})
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key]), key
    assert results[1]["step.norm.bias"] == 3


FORGED_FORMER = {
    "a gap": parts(lambda p: [p[0], [p[1][0], p[1][1] + 1, p[1][2]]]),
    "an overlap": parts(lambda p: [p[0], [p[1][0], p[1][1] - 1, p[1][2]]]),
    "a negative part": parts(lambda p: [["x", 0, -4], *p]),
    "too long": parts(lambda p: [p[0], [p[1][0], p[1][1], p[1][2] + 8]]),
    "today's": lambda index: index | {"format": 2},
}


@pytest.mark.parametrize("kind", FORGED_FORMER)
def test_a_forged_index_of_format_1_is_refused(former, kind):
    rewrite(former / "index.json", FORGED_FORMER[kind])
    reseal(former)
    refused(former, f"index.json: {kind}")


def test_a_state_of_another_step_is_refused(path):
    rewrite(path / "state.json", lambda state: state | {"step": 4})
    reseal(path)
    assert "step is 4; expected 3" in refused(path, "state.json: another step")


def test_a_link_out_of_the_checkpoint_is_followed_to_files_only(path):
    (path / "tokenizer.model").unlink()
    (path / "tokenizer.model").symlink_to("/dev/zero")
    assert "is a device" in refused(path, "tokenizer.model: a device")


def test_best_json_is_read_strictly(path):
    for content in (
        "{}",
        "[]",
        '{"step": "x", "val_loss": 1}',
        '{"step": 3, "val_loss": 1, "a": 1}',
    ):
        (path.parent / "best.json").write_text(content)
        with pytest.raises(UserError, match="best.json"):
            CheckpointStore(path.parent).best()


def test_a_rank_that_cannot_write_its_part_spoils_the_checkpoint(tmp_path, monkeypatch):
    """safetensors may report a full disk by an exception of its own."""
    alone, store = World(0, 1, 0, 1, torch.device("cpu")), CheckpointStore(tmp_path)
    model, optimizer = trained()
    states = {"a": torch.ones(3, 2)}
    for error in (SafetensorError("No space left on device"), RuntimeError("a defect")):

        def fail(*args, error=error):
            raise error

        monkeypatch.setattr("gam_scale.checkpoint.carried.save_file", fail)
        saver = Saver(store, alone, RunConfig(), b"tok")
        saver.start(shards_of(model, optimizer), TrainState(step=3), is_best=False, carried=states)
        with pytest.raises((UserError, RuntimeError), match="No space left|a defect"):
            saver.finish()
        assert store.steps() == [], "saving: a checkpoint without a part of it was committed"


def test_whatever_keeps_the_main_rank_from_committing_is_told_to_all(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("a defect")

    told = []
    monkeypatch.setattr(World, "any", lambda world, flag: told.append(flag) or flag)
    monkeypatch.setattr(CheckpointStore, "commit", fail)
    alone = World(0, 1, 0, 1, torch.device("cpu"))
    saver = Saver(CheckpointStore(tmp_path), alone, RunConfig(), b"tok")
    saver.start(shards_of(*trained()), TrainState(step=3), is_best=False)
    told.clear()
    with pytest.raises(RuntimeError, match="a defect"):
        saver.finish()
    assert told == [False, True], "the others wait for the main rank"


def test_any_range_of_a_sound_checkpoint_is_still_read(path):
    weight = whole(CanonicalTensors(path), "param.embedding.weight")
    part = CanonicalTensors(path).read("param", "embedding.weight", (40,), (10,))
    assert torch.equal(part, weight.flatten()[40:50])


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"seal": 1}', b'{"a": 1}', b"\xff", b"[" * 100_000]
)
def test_fall_back_helps_whatever_a_damaged_list_looks_like(tmp_path, content):
    store, alone = save(tmp_path, 1), World(0, 1, 0, 1, torch.device("cpu"))
    save(tmp_path, 2)
    (store.path(2) / "checksums.json").write_bytes(content)
    with pytest.raises(UserError):
        newest_sound(store, alone, fall_back=False)
    assert newest_sound(store, alone, fall_back=True) == store.path(1)
    assert store.steps() == [1] and (tmp_path / "damaged-step-00000002").is_dir()


@pytest.mark.parametrize("name", ["index.json", "state.json", "checksums.json"])
def test_fall_back_helps_where_a_file_cannot_be_read(tmp_path, name):
    """/proc/self/mem stands for a file on a failing disk: reading its first byte fails (EIO)."""
    store, alone = save(tmp_path, 1), World(0, 1, 0, 1, torch.device("cpu"))
    save(tmp_path, 2)
    (store.path(2) / name).unlink()
    (store.path(2) / name).symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"{name} cannot be read: Input/output error"):
        newest_sound(store, alone, fall_back=False)
    assert newest_sound(store, alone, fall_back=True) == store.path(1)
