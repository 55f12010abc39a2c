"""Checkpoints: whole or absent, verified, pruned, and never unpickled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import adamw, save, shards_of, small_model, trained
from safetensors.torch import load_file

from gam_scale import files
from gam_scale.checkpoint import merge
from gam_scale.checkpoint.canonical import CanonicalTensors, write_shards
from gam_scale.checkpoint.cuts import fault
from gam_scale.checkpoint.merge import IndexWriter
from gam_scale.checkpoint.shard import Shard
from gam_scale.checkpoint.state import TrainState, load_state
from gam_scale.checkpoint.store import CheckpointStore, load_model, resolve, saving
from gam_scale.checkpoint.verify import verify_checkpoint
from gam_scale.errors import UserError
from gam_scale.hardware.memory import allocated_at_most


@pytest.mark.parametrize("n_ranks", [1, 3, 64])  # 64: some shards of a bias are empty
def test_round_trip_is_exact_and_training_goes_on_alike(tmp_path, n_ranks):
    model, optimizer = trained()
    path = save(tmp_path, 3, (model, optimizer), n_ranks).latest()
    other = small_model()
    other_optimizer = adamw(other)
    CanonicalTensors(path).load_into(shards_of(other, other_optimizer))
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))
    for m, o in ((model, optimizer), (other, other_optimizer)):
        m(tokens, tokens).backward()
        o.step()
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert load_state(path) == TrainState(step=3, optimizer_steps=3)


def test_loading_takes_one_part_at_a_time(tmp_path):
    model_and_optimizer = trained(d_model=64)
    store = save(tmp_path, 1, model_and_optimizer, n_ranks=2)
    parts = [shard.own_part() for shard in shards_of(*model_and_optimizer, rank=1, n_ranks=3)]
    tensors = CanonicalTensors(store.latest())
    # The reader is one of 3 ranks, and the files are of 2: its parts lie across them.
    assert allocated_at_most(lambda: tensors.load_into(parts)) == max(p.data.nbytes for p in parts)


def test_any_part_across_shards(tmp_path):
    model, optimizer = trained()
    tensors = CanonicalTensors(save(tmp_path, 1, (model, optimizer), n_ranks=5).latest())
    whole = model.embedding.weight.detach()
    for start, stop in [(0, 88), (0, 0), (17, 18), (3, 70), (87, 88)]:
        part = tensors.read("param", "embedding.weight", (start,), (stop - start,))
        assert torch.equal(part, whole.flatten()[start:stop])
    for (row, column), (rows, columns) in [((0, 0), (11, 8)), ((3, 2), (5, 3)), ((10, 7), (1, 1))]:
        part = tensors.read("param", "embedding.weight", (row, column), (rows, columns))
        assert torch.equal(part, whole[row : row + rows, column : column + columns])


def test_the_files_are_safetensors_that_others_read(tmp_path):
    model, optimizer = trained()
    (file,) = save(tmp_path, 1, (model, optimizer)).latest().glob("*.safetensors")
    stored = load_file(file)
    assert torch.equal(stored["param.embedding.weight"], model.embedding.weight.detach())


KILLED_WHILE_SAVING = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from gam_scale import files
from gam_scale.checkpoint import canonical, merge, store
from checkpoints import save, trained
save(Path({folder!r}), 1)
calls = 0
def killer(original):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == {instant}:
            os._exit(9)  # as SIGKILL: no handlers, no clean-up
        return original(*args, **kwargs)
    return wrapped
canonical._write_safetensors = killer(canonical._write_safetensors)
merge.write_bytes = killer(merge.write_bytes)
store.write_json = killer(store.write_json)
files.checksum = killer(files.checksum)
files.sync = killer(files.sync)
files.os.replace = killer(os.replace)
save(Path({folder!r}), 2)
print("calls", calls)
"""


@pytest.mark.parametrize("instant", [1, 2, 4, 7, 11, 16, 21, 26, 28, 29, 30, 31])
def test_a_kill_at_any_instant_of_a_save_leaves_the_last_good_one(tmp_path, instant):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    code = KILLED_WHILE_SAVING.format(
        tests=str(Path(__file__).parents[1]), folder=str(folder), instant=instant
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    store = CheckpointStore(folder)
    if done.returncode == 9:
        assert store.steps() in ([1], [1, 2])  # 2: killed after the rename, it is whole
    else:
        assert done.returncode == 0, done.stderr
        assert store.steps() == [1, 2]
    load_state(store.latest())
    load_model(store.latest(), small_model())
    save(folder, 3)  # what the kill left behind is in nobody's way
    assert store.steps()[-1] == 3


def test_damage_is_named(tmp_path):
    path = save(tmp_path, 1, n_ranks=2).latest()
    shard = path / "shard-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match="shard-00001-of-00002.safetensors differs"):
        verify_checkpoint(path)
    os.remove(shard)
    with pytest.raises(UserError, match="shard-00001-of-00002.safetensors is missing"):
        verify_checkpoint(path)


def test_ranks_share_the_verification(tmp_path):
    path = save(tmp_path, 1).latest()
    (path / "state.json").write_text("{}")
    found = 0
    for rank in range(3):
        try:
            verify_checkpoint(path, rank, 3)
        except UserError:
            found += 1
    assert found == 1


def test_another_shape_is_refused_by_name(tmp_path):
    path = save(tmp_path, 1).latest()
    with pytest.raises(UserError, match=r"embedding.weight has shape \(11, 8\).*\(11, 16\)"):
        load_model(path, small_model(16))


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    for step in (1, 2, 3, 4, 5):
        store = save(tmp_path, step)
    store.mark_best(2, 1.5)
    store.prune(keep_last=2)
    assert store.steps() == [2, 4, 5]
    assert store.best() == store.path(2)
    store.prune(keep_last=1)
    assert store.steps() == [2, 5]


def test_a_full_disk_is_said_and_leaves_the_last_good_one(tmp_path, monkeypatch):
    store = save(tmp_path, 1)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with (
        pytest.raises(UserError, match="step-00000002.*disk is full.*last good one is step 1"),
        saving(store.path(2)),
    ):
        save(tmp_path, 2)
    assert store.steps() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_commit_waits_for_no_shard_again(tmp_path, monkeypatch):
    """The writer of each shard has already synced it to the disk."""
    synced, sync = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path.name), sync(path)))
    save(tmp_path, 1, n_ranks=2)
    assert any(name.startswith(".state.json") for name in synced)
    assert not [name for name in synced if name.endswith(".safetensors")]


def test_ranks_that_differ_in_a_tensor_are_refused(tmp_path):
    weight = torch.zeros(4, 2)
    for other in (
        Shard("row", "w", (4, 2), (2, 0), weight[2:].double()),
        Shard("row", "w", (4, 3), (2, 0), weight[2:]),
    ):
        write_shards(tmp_path, 0, 2, [Shard("row", "w", (4, 2), (0, 0), weight[:2])])
        write_shards(tmp_path, 1, 2, [other])
        with pytest.raises(UserError, match="row.w is .* in shard-00001.* in shard-00000"):
            IndexWriter().write(tmp_path, 2)


def test_an_index_is_merged_anew_only_where_the_cut_is_another(tmp_path, monkeypatch):
    merges = []
    monkeypatch.setattr(merge, "fault", lambda *cut: merges.append(cut) or fault(*cut))

    def index(folder, writer, rows):
        folder.mkdir()
        weight = torch.full((4, 2), float(len(merges)))
        write_shards(folder, 0, 2, [Shard("param", "w", (4, 2), (0, 0), weight[:rows])])
        write_shards(folder, 1, 2, [Shard("param", "w", (4, 2), (rows, 0), weight[rows:])])
        checksums = writer.write(folder, 2)
        assert checksums == {p.name: files.checksum(p) for p in folder.glob("*.safetensors")}
        CanonicalTensors(folder).read("param", "w", (0, 0), (4, 2))
        return (folder / "index.json").read_bytes()

    writer = IndexWriter()
    for name, rows, n_merges in [("a", 2, 1), ("b", 2, 1), ("c", 3, 2), ("d", 2, 3), ("e", 2, 3)]:
        assert index(tmp_path / name, writer, rows) == index(
            tmp_path / f"{name}-alone", IndexWriter(), rows
        )
        merges.pop()  # the second writer's
        assert len(merges) == n_merges, name


def test_resolve_takes_a_run_a_folder_or_a_checkpoint(tmp_path):
    store = save(tmp_path / "run" / "checkpoints", 7)
    assert resolve(tmp_path / "run") == resolve(store.folder) == resolve(store.path(7))
    with pytest.raises(UserError, match="holds no checkpoint"):
        resolve(tmp_path)
