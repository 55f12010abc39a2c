"""Test reading DeepSpeed's universal checkpoints, which are written here in their layout."""

import shutil
from dataclasses import replace

import pytest
import torch
from checkpoints import whole

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.state import load_state
from gam_scale.checkpoint.store import load_config_of
from gam_scale.errors import UserError
from gam_scale.export.imported import write_checkpoint
from gam_scale.export.universal import read_universal
from gam_scale.model.lm import build_model

FILES = {"fp32": "param", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


@pytest.fixture
def universal(tmp_path, config):
    """Return a function that writes a folder: flat as by ZeRO stage 3, else as by 1 and 2."""
    generator = torch.Generator().manual_seed(0)

    def write(*, flat: bool):
        folder, tensors = tmp_path / "universal", {}
        for name, p in build_model(config.model, seed=0).named_parameters():
            (folder / "zero" / name).mkdir(parents=True)
            for file, kind in FILES.items():
                value = torch.randn(p.shape, generator=generator)
                tensors[f"{kind}.{name}"] = value
                saved = value.flatten() if flat else {"param": value, "cat_dim": 0}
                torch.save(saved, folder / "zero" / name / f"{file}.pt")
            if not flat:
                torch.save(torch.tensor(7.0), folder / "zero" / name / "step.pt")
        rank = "zero_pp_rank_0_mp_rank_00" if flat else "mp_rank_00"
        torch.save({"global_steps": 9, "module": {}}, folder / f"{rank}_model_states.pt")
        return folder, tensors

    return write


@pytest.mark.parametrize("flat", [False, True])
def test_parameters_moments_and_steps(universal, config, tokenizer_file, tmp_path, flat):
    folder, tensors = universal(flat=flat)
    imported = read_universal(folder, config, tokenizer_file)
    path = write_checkpoint(imported, tmp_path / "run")
    written = CanonicalTensors(path)
    names = [key.removeprefix("param.") for key in tensors if key.startswith("param.")]
    tensors |= {f"step.{name}": torch.tensor(9.0 if flat else 7.0) for name in names}
    assert set(written.tensors) == set(tensors)
    for key, tensor in tensors.items():
        assert torch.equal(whole(written, key), tensor), key
    state = load_state(path)
    # Stages 1 and 2 save how many steps Adam applied; stage 3 saves the run's steps only.
    assert (state.step, state.optimizer_steps) == ((9, 9) if flat else (9, 7))
    assert state.sequences == 9 * config.train.global_batch_size


def test_moments_are_there_whole_or_not_at_all(universal, config, tokenizer_file, tmp_path):
    folder, _ = universal(flat=True)
    (folder / "zero" / "norm.bias" / "exp_avg.pt").unlink()
    imported = read_universal(folder, config, tokenizer_file)
    with pytest.raises(UserError, match="no exp_avg of norm.bias, but other states"):
        write_checkpoint(imported, tmp_path / "run")
    for path in folder.glob("zero/*/exp_avg*.pt"):
        path.unlink()
    path = write_checkpoint(read_universal(folder, config, tokenizer_file), tmp_path / "run")
    # Without moments Adam starts again, with its counts by parameter; the run's count stays.
    assert all(key.startswith("param.") for key in CanonicalTensors(path).content())
    assert load_state(path).optimizer_steps == 9


def test_an_engine_file_that_cannot_be_loaded_safely(universal, config, tokenizer_file):
    folder, _ = universal(flat=False)
    torch.save({"global_steps": 9, "client": folder}, folder / "mp_rank_00_model_states.pt")
    state = read_universal(folder, config, tokenizer_file).state
    assert (state.step, state.optimizer_steps) == (7, 7)


def test_the_vocabulary_may_be_left_to_the_embedding(universal, config, tokenizer_file, tmp_path):
    folder, _ = universal(flat=True)
    config = replace(config, model=replace(config.model, vocab_size=0))
    path = write_checkpoint(read_universal(folder, config, tokenizer_file), tmp_path / "run")
    assert load_config_of(path).model.vocab_size == 320


def test_what_does_not_fit_is_named(universal, config, tokenizer_file, tmp_path):
    folder, _ = universal(flat=False)
    zero = folder / "zero"

    def refuse(match, where=folder, config=config):
        with pytest.raises(UserError, match=match):
            imported = read_universal(where, config, tokenizer_file)
            write_checkpoint(imported, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refuse("has no folder zero", where=tmp_path)
    refuse(
        r"param.position.weight has shape \(48, 32\); expected \(64, 32\)",
        config=replace(config, model=replace(config.model, max_seq_len=64)),
    )
    sound = torch.load(zero / "norm.bias" / "fp32.pt")
    torch.save({"param": torch.full((32,), torch.nan)}, zero / "norm.bias" / "fp32.pt")
    refuse("param.norm.bias holds numbers that are not finite")
    torch.save({"param": torch.ones(32, dtype=torch.int8)}, zero / "norm.bias" / "fp32.pt")
    refuse("param.norm.bias is int8")
    torch.save(sound, zero / "norm.bias" / "fp32.pt")
    torch.save({"other": 1}, zero / "norm.bias" / "exp_avg.pt")
    refuse("norm.bias/exp_avg.pt holds no tensor")
    shutil.move(zero / "norm.bias", zero / "norm.shift")
    torch.save(torch.zeros(32), zero / "norm.shift" / "exp_avg.pt")
    refuse("norm.shift is not a parameter of this model")
    shutil.rmtree(zero / "norm.shift")
    refuse("has no parameter norm.bias")
    for count in ({}, torch.tensor(-1.0), torch.tensor(torch.inf)):
        torch.save(count, sorted(zero.glob("*/step.pt"))[0])
        refuse("step.pt: its count of steps is no number")
    torch.save([1], folder / "mp_rank_00_model_states.pt")
    torch.save({}, next(zero.glob("*/step.pt")))
    for path in list(zero.glob("*/step.pt"))[1:]:
        path.unlink()
    refuse("step.pt: its count of steps is no number", config=config)
    for path in [*zero.glob("*/step.pt"), *folder.glob("*.pt")]:
        path.unlink()
    refuse("says nowhere how many steps were taken")
