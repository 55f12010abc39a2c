"""Test that weights of the paper's official code become a checkpoint that computes the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gam_scale.checkpoint.canonical import CanonicalTensors
from gam_scale.checkpoint.load import load_trained
from gam_scale.config import GAMConfig, ModelConfig
from gam_scale.errors import UserError
from gam_scale.evaluate.text import TextSource, batches
from gam_scale.export.imported import write_checkpoint
from gam_scale.export.official import read_official
from gam_scale.interop import dump_official
from gam_scale.model.lm import build_model

GOLDEN = Path(__file__).parents[1] / "golden" / "gam_official.safetensors"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    """Return the official state dict of a model with the test tokenizer's 320 ids."""
    config = ModelConfig(d_model=16, n_layers=2, vocab_size=320, max_seq_len=24)
    config.gam = GAMConfig(n_slots=5)
    return dump_official(build_model(config, seed=2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_state_dict_becomes_a_checkpoint(state, tokenizer_file, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    out = write_checkpoint(read_official(path, tokenizer_file), tmp_path / "run")
    trained = load_trained(tmp_path / "run")
    assert out.name == "step-00000000" and trained.config.data.seq_len == 24
    assert all(key.startswith("param.") for key in CanonicalTensors(out).tensors)
    for name, tensor in dump_official(trained.model).items():
        assert torch.equal(tensor, state[name]), name


def test_the_official_models_own_logits(tmp_path):
    golden = load_file(GOLDEN)
    state = {k.removeprefix("init/"): v for k, v in golden.items() if k.startswith("init/")}
    save_file(state, tmp_path / "weights.safetensors")
    imported = read_official(tmp_path / "weights.safetensors", tmp_path / "unused")
    model = build_model(imported.config.model, seed=0).double().eval()
    for name, p in model.named_parameters():
        p.data.copy_(imported.tensors[f"param.{name}"])
    expected = golden["logits0"]
    error = (model(golden["tokens"][0]) - expected).abs().max() / expected.abs().max()
    assert error < 1e-9  # float64: only the order of additions differs


def test_what_does_not_fit_is_named(state, tokenizer_file, tmp_path):
    path = tmp_path / "weights.pt"

    def refuse(match, saved):
        if saved is not None:
            torch.save(saved, path)
        with pytest.raises(UserError, match=match):
            read_official(path, tokenizer_file)

    refuse("no such file", None)
    refuse("weights.pt: the official state dict has no tensor token_embedding.weight", {})
    refuse(
        r"pos_embedding.weight has shape \(3,\)", state | {"pos_embedding.weight": torch.ones(3)}
    )
    refuse("extra is not a tensor of the official", state | {"extra": torch.ones(1)})
    refuse("is not a state dict", {"model": state})
    refuse("is not a state dict", {1: torch.ones(1)})
    far = {"blocks.99999.ln1.weight": torch.ones(16)}
    refuse("blocks.99999.ln1.weight is not a tensor of the official", state | far)
    refuse("holds more than tensors", tmp_path)  # a Path: unpickling would create it
    path.write_bytes(b"nonsense")
    refuse("is damaged or holds more", None)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(16, dtype=torch.int8), "ln_f.weight is int8"),
        (torch.ones(16, dtype=torch.complex64), "ln_f.weight is complex64"),
        (torch.ones(16).to_sparse(), "ln_f.weight is float32, torch.sparse_coo"),
        (torch.full((16,), torch.nan), "ln_f.weight holds numbers that are not finite"),
        (torch.full((16,), torch.inf), "ln_f.weight holds numbers that are not finite"),
    ],
)
def test_tensors_that_are_no_weights_are_not_taken(state, tokenizer_file, tmp_path, value, said):
    torch.save(state | {"ln_f.weight": value}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=said):
        read_official(tmp_path / "weights.pt", tokenizer_file)


def test_evaluating_a_model_that_names_no_data_asks_for_some(checkpoint):
    trained = load_trained(checkpoint("gam"))
    with pytest.raises(UserError, match="names no data, .* expected --data DIR or --text FILE"):
        list(batches(trained, TextSource(), 16, 2))
