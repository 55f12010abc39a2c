"""Test initial weights: both schemes, and that each depends on no other part of the model."""

import math

import pytest
import torch

from gam_scale.config import GAMConfig, ModelConfig
from gam_scale.model.lm import build_model
from gam_scale.strict import from_dict


def model(init: str, block: str = "gam", **changes):
    config = ModelConfig(
        block=block,
        d_model=64,
        n_layers=3,
        vocab_size=500,
        init=init,
        gam=GAMConfig(n_slots=32),
        **changes,
    )
    return build_model(config, seed=7)


def test_paper_is_torchs_defaults_with_loud_positions():
    m = model("paper")
    # 5% covers the sampling error of a standard deviation over thousands of draws.
    assert m.position.weight.std().item() == pytest.approx(1.0, rel=0.05)
    uniform = 1 / math.sqrt(64) / math.sqrt(3)
    assert m.embedding.weight.std().item() == pytest.approx(uniform, rel=0.05)
    assert m.blocks[0].gate.weight.abs().max().item() <= 1 / math.sqrt(64)
    assert m.blocks[0].gate.bias.abs().max().item() > 0


def test_scaled_has_quiet_positions_and_shrinks_residual_outputs():
    m = model("scaled")
    assert m.position.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert m.embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    plain = 1 / math.sqrt(3 * 256)
    down = m.blocks[1].ffn.down.weight.std().item()
    assert down == pytest.approx(plain / math.sqrt(2 * 3), rel=0.05)
    assert m.blocks[1].ffn.up.bias.abs().max().item() == 0


@pytest.mark.parametrize("init", ["paper", "scaled"])
@pytest.mark.parametrize(
    ("kind", "ffn", "writes"),
    [
        ("mamba2", "none", 1),
        ("mamba2", "mlp", 2),
        ("gdn", "none", 1),
        ("gam_delta", "none", 1),
        ("gdn", "mlp", 2),
        ("raven", "none", 1),
        # These kinds are older than the rule and keep their initialisation.
        ("mamba", "none", 2),
        ("attention", "none", 2),
        ("delta", "none", 2),
    ],
)
def test_an_output_matrix_knows_how_often_its_layer_writes(init, kind, ffn, writes):
    sizes = {"d_model": 64, "n_layers": 3, "vocab_size": 9, "init": init}
    config = from_dict(ModelConfig, sizes | {"layers": [{"kind": kind, "ffn": ffn}]})
    block = build_model(config, seed=7).blocks[0]
    ends = ("out.weight", "out_proj.weight")
    (found,) = [p for name, p in block.named_parameters() if name.endswith(ends)]
    usual = 1 / math.sqrt(3 * found.shape[1])
    scale = math.sqrt(writes * 3) if init == "scaled" else 1.0
    assert found.std().item() == pytest.approx(usual / scale, rel=0.05)  # standard error: 1.1%


@pytest.mark.parametrize("init", ["paper", "scaled"])
@pytest.mark.parametrize("block", ["gam", "attention", "mamba"])
def test_every_parameter_is_set_and_reproducible(init, block):
    first, second = model(init, block), model(init, block)
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.isfinite(a).all(), name
        assert torch.equal(a, b), name


def test_a_parameter_does_not_depend_on_what_else_is_drawn():
    torch.manual_seed(123)
    full = dict(model("scaled").named_parameters())
    torch.manual_seed(321)
    without = dict(model("scaled", position="none").named_parameters())
    assert "position.weight" not in without
    for name, p in without.items():
        assert torch.equal(p, full[name]), name
