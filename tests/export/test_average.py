"""Test the mean of a run's checkpoints: it averages tensors and is an ordinary checkpoint."""

import json
import shutil

import pytest
import torch
from checkpoints import whole as whole_tensor
from whole_runs import train

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import CheckpointStore, load_config_of
from gam_scale.checkpoint.verify import TOKENIZER, verify_checkpoint
from gam_scale.errors import UserError
from gam_scale.export import average as module
from gam_scale.export.average import average, checkpoints_of

STEPS = [9, 12, 15]
FLAT = {
    "train": {"schedule": "constant", "steps": 15},
    "checkpoint": {"every_steps": 3, "keep_last": 3, "keep_best": False},
    "eval": {"every_steps": 0},
}


@pytest.fixture
def plateau(whole):
    """Return a run at a constant rate that kept three checkpoints."""
    return whole(**FLAT)


def tensors_of(checkpoint):
    tensors = CanonicalTensors(checkpoint)
    return {key: whole_tensor(tensors, key) for key in tensors.tensors}


def test_the_mean_is_that_of_the_tensors(plateau, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 20_000)  # several files
    written = average(checkpoints_of([plateau]), tmp_path / "mean")
    assert written == tmp_path / "mean" / "checkpoints" / "step-00000015"
    verify_checkpoint(written)
    assert len(list(written.glob("shard-*"))) > 2
    each = [tensors_of(CheckpointStore(plateau / "checkpoints").path(step)) for step in STEPS]
    mean = tensors_of(written)
    assert mean.keys() == {key for key in each[0] if key.startswith("param.")}
    for key, tensor in mean.items():
        direct = torch.stack([tensors[key].double() for tensors in each]).mean(0)
        # Two additions and a division in float32, each rounded to 2^-24 of its result.
        size = max(tensors[key].abs().max().item() for tensors in each)
        assert (tensor.double() - direct).abs().max() <= 3 * 2**-23 * size, key
    assert any(not torch.equal(tensor, each[-1][key]) for key, tensor in mean.items())
    newest = CheckpointStore(plateau / "checkpoints").path(15)
    assert (written / TOKENIZER).read_bytes() == (newest / TOKENIZER).read_bytes()
    assert load_config_of(written) == load_config_of(newest)
    assert (load_state(written).step, load_state(written).best_val_loss) == (15, None)
    of = json.loads((tmp_path / "mean" / module.NOTE).read_text())
    assert [name[-2:] for name in of] == ["09", "12", "15"]


def test_every_tool_takes_it_and_a_run_goes_on_from_it(plateau, tiny, tmp_path, run_tool, capsys):
    out = tmp_path / "mean"
    assert run_tool("average_checkpoints", plateau, "--last", 2, "--out", out) == 0
    assert "the mean of steps 12, 15" in capsys.readouterr().out
    assert run_tool("generate", out, "the cat", "--seed", 1) == 0
    assert capsys.readouterr().out.strip()
    data = json.loads((plateau / "config.json").read_text())["data"]["sets"][0]["path"]
    assert run_tool("evaluate", out, "--data", data, "--max-tokens", 400) == 0
    assert "perplexity" in capsys.readouterr().out
    export = ("convert_checkpoint", "export", out, "--to", "hf", "--out", tmp_path / "hf")
    assert run_tool(*export) == 0
    train(tiny(tmp_path / "on", checkpoint={"continue_from": str(out)}, train={"steps": 4}))
    summary = json.loads((tmp_path / "on" / "summary.json").read_text())
    assert summary["continued"]["kept"] == ["weights", "place in the data"]
    mistakes = {(plateau, "--last", 1): "expected two", (plateau,): "is not empty"}
    mistakes[plateau, "--last", 4] = "--last is 4 but"
    for arguments, message in mistakes.items():
        target = out if "empty" in message else tmp_path / "new"
        assert run_tool("average_checkpoints", *arguments, "--out", target) == 2
        assert message in capsys.readouterr().err


def test_what_is_no_run_is_refused(plateau, whole, tmp_path):
    last = CheckpointStore(plateau / "checkpoints").path(15)
    other = whole(**(FLAT | {"train": {"schedule": "constant", "steps": 12, "seed": 1}}))
    shape = shutil.copytree(plateau, tmp_path / "shape")
    folders = {
        "train.seed is 1 in .* but 0 in .*; expected checkpoints of one run": other,
        "two checkpoints or more, each of another step": plateau,
        "holds no checkpoint": tmp_path,
    }
    for message, folder in folders.items():
        with pytest.raises(UserError, match=message):
            average(checkpoints_of([folder, last]), tmp_path / "out")
    (shape / "checkpoints" / "step-00000012" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="config.json"):
        average(checkpoints_of([shape]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
