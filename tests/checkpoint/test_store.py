"""Checkpoints: whole or absent, verified, pruned, and never unpickled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gam_scale import files
from gam_scale.checkpoint.store import (
    MODEL,
    CheckpointStore,
    TrainState,
    load_model,
    load_optimizer,
    load_state,
    resolve,
)
from gam_scale.config import GAMConfig, ModelConfig, RunConfig
from gam_scale.errors import UserError
from gam_scale.model.lm import build_model


def small_model(d_model: int = 8):
    config = ModelConfig(
        d_model=d_model,
        n_layers=1,
        vocab_size=11,
        max_seq_len=6,
        dropout=0.0,
        gam=GAMConfig(n_slots=3),
    )
    return build_model(config, seed=0)


def trained(d_model: int = 8):
    model = small_model(d_model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def save(folder: Path, step: int, model_and_optimizer=None) -> CheckpointStore:
    store = CheckpointStore(folder)
    model, optimizer = model_and_optimizer or trained()
    store.save(model, optimizer, TrainState(step=step, optimizer_steps=3), RunConfig(), b"tok")
    return store


def test_round_trip_is_exact_and_training_goes_on_alike(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 3, (model, optimizer)).latest()
    other = small_model()
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=1e-2, fused=True)
    state = load_state(path)
    load_model(path, other)
    load_optimizer(path, other, other_optimizer, state)
    tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))
    for m, o in ((model, optimizer), (other, other_optimizer)):
        m(tokens, tokens).backward()
        o.step()
    for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert state == TrainState(step=3, optimizer_steps=3)


KILLED_WHILE_SAVING = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from gam_scale import files
from gam_scale.checkpoint import store
from test_store import save, trained
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
store.save_file = killer(store.save_file)
store.write_json = killer(store.write_json)
files.checksum = killer(files.checksum)
files._sync = killer(files._sync)
files.os.rename = killer(os.rename)
save(Path({folder!r}), 2)
print("calls", calls)
"""


@pytest.mark.parametrize("instant", [1, 4, 9, 16, 17])
def test_a_kill_at_any_instant_of_a_save_leaves_the_last_good_one(tmp_path, instant):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    code = KILLED_WHILE_SAVING.format(
        tests=str(Path(__file__).parent), folder=str(folder), instant=instant
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
    path = save(tmp_path, 1).latest()
    data = bytearray((path / MODEL).read_bytes())
    data[-1] ^= 1
    (path / MODEL).write_bytes(data)
    with pytest.raises(UserError, match="model.safetensors differs"):
        load_state(path)
    os.remove(path / MODEL)
    with pytest.raises(UserError, match="model.safetensors is missing"):
        load_state(path)


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
    with pytest.raises(UserError, match="step-00000002.*disk is full.*last good one is step 1"):
        save(tmp_path, 2)
    assert store.steps() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_resolve_takes_a_run_a_folder_or_a_checkpoint(tmp_path):
    store = save(tmp_path / "run" / "checkpoints", 7)
    assert resolve(tmp_path / "run") == resolve(store.folder) == resolve(store.path(7))
    with pytest.raises(UserError, match="holds no checkpoint"):
        resolve(tmp_path)
