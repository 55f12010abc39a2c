"""Our GAM against results of the paper's official code, in float64."""

from pathlib import Path

import pytest
import torch
from layouts import plain
from safetensors.torch import load_file

from gam_scale.config import ModelConfig
from gam_scale.errors import UserError
from gam_scale.interop import dump_official, load_official, official_name
from gam_scale.model.lm import build_model
from gam_scale.strict import from_dict

GOLDEN = Path(__file__).parent / "golden" / "gam_official.safetensors"
TOLERANCE = 1e-9  # relative, float64: only the order of additions differs


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


def part(golden: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, what: str) -> None:
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < TOLERANCE, f"{what}: relative error {error:.2e}"


def test_logits_loss_and_every_gradient(golden):
    model = load_official(part(golden, "init/")).eval()
    tokens, targets = golden["tokens"][0], golden["targets"][0]
    assert_close(model(tokens), golden["logits0"], "logits")
    loss = model(tokens, targets) / targets.numel()
    assert_close(loss, golden["loss0"][0], "loss")
    loss.backward()
    expected = part(golden, "grad0/")
    seen = set()
    for name, p in model.named_parameters():
        assert_close(p.grad, expected[official_name(name)], name)
        seen.add(official_name(name))
    assert seen == set(expected)


def test_one_block(golden):
    model = load_official(part(golden, "init/")).eval()
    x = golden["block0_in"]
    assert_close(model.blocks[0](x, plain(x)), golden["block0_out"], "block 0")


def test_twenty_training_steps(golden):
    model = load_official(part(golden, "init/")).eval()  # the golden run has no dropout
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1
    )
    losses, norms = [], []
    for tokens, targets in zip(golden["tokens"], golden["targets"], strict=True):
        loss = model(tokens, targets) / targets.numel()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        losses.append(loss.detach())
    assert_close(torch.stack(losses), golden["train_losses"], "losses")
    assert_close(torch.stack(norms), golden["train_grad_norms"], "gradient norms")
    for name, tensor in dump_official(model).items():
        if name != "head.weight":
            assert_close(tensor, golden[f"final/{name}"], f"final {name}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_round_trip_is_exact_and_keeps_the_dtype(golden, dtype):
    state = {k: v.to(dtype) for k, v in part(golden, "init/").items()}
    back = dump_official(load_official(state))
    assert set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == dtype
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "rmsnorm"},
        {"norm": "rmsnorm", "layers": [{"kind": "static", "norm": "layernorm"}]},
        {"tied_head": False},
        {"position": "none"},
        {"ffn": "relu2"},
        {"logit_softcap": 30.0},
    ],
    ids=str,
)
def test_what_the_official_code_does_not_have_is_not_written_for_it(settings):
    small = {"d_model": 16, "n_layers": 2, "vocab_size": 9, "gam": {"n_slots": 4}}
    dump_official(build_model(from_dict(ModelConfig, small), 0))
    with pytest.raises(UserError, match="the official code has no counterpart"):
        dump_official(build_model(from_dict(ModelConfig, small | settings), 0))


def test_a_state_dict_that_does_not_fit_is_refused_by_name(golden):
    state = part(golden, "init/")
    with pytest.raises(UserError, match="no tensor blocks.1.gate.bias"):
        load_official({k: v for k, v in state.items() if k != "blocks.1.gate.bias"})
    with pytest.raises(UserError, match="no tensor token_embedding.weight"):
        load_official({})
    with pytest.raises(UserError, match="extra.weight is not a tensor"):
        load_official(state | {"extra.weight": torch.zeros(1)})
    for head in (torch.zeros(3, 5), state["token_embedding.weight"] + 1):
        with pytest.raises(UserError, match="head.weight differs from token_embedding.weight"):
            load_official(state | {"head.weight": head})
    with pytest.raises(UserError, match=r"ln_f.bias has shape \(3,\); expected \(16,\)"):
        load_official(state | {"ln_f.bias": torch.zeros(3)})
