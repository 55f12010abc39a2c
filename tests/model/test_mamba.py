"""Test the Mamba block against its definition; initial values, documents, generation, FLOPs."""

import pytest
import torch
import torch.nn.functional as F
from layouts import plain
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.config import MambaConfig, ModelConfig
from gam_scale.model.init import initialise
from gam_scale.model.layout import Layout
from gam_scale.model.mixers.mamba import MambaBlock, MambaMixer
from gam_scale.model.policy import MATRIX, TO_RESIDUAL, policy_of

STACKS = ["residual", "paper"]


def config(stack: str = "residual", init: str = "scaled", **changes) -> ModelConfig:
    values = {"d_model": 20, "n_layers": 2, "dropout": 0.0, "block": "mamba", "init": init}
    return ModelConfig(
        **(values | changes), mamba=MambaConfig(d_state=4, d_conv=3, expand=2, stack=stack)
    )


def build(model: ModelConfig) -> MambaBlock:
    return model.stack()[0].build(model.shape)


def make_block(stack: str = "residual", dtype=torch.float64, **changes) -> MambaBlock:
    block = build(config(stack, **changes))
    initialise(block, config(stack, **changes), seed=0)
    return block.to(dtype).eval()


def make_input(length: int = 13, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, length, 20, generator=generator, dtype=dtype)


def reference_mixer(m: MambaMixer, x: Tensor) -> Tensor:
    """Compute the mixer of arXiv 2312.00752, section 3.4, with torch's own convolution."""
    x, z = (x @ m.in_proj.weight.T).chunk(2, dim=-1)
    k = m.conv.kernel_size
    x = F.conv1d(F.pad(x.mT, (k - 1, 0)), m.conv.weight, m.conv.bias, groups=x.shape[-1]).mT
    x = x * torch.sigmoid(x)
    low, b, c = (x @ m.x_proj.weight.T).split([m.dt_proj.in_features, 4, 4], dim=-1)
    dt = torch.log1p(torch.exp(low @ m.dt_proj.weight.T + m.dt_proj.bias))
    h, outputs = x.new_zeros(x.shape[0], x.shape[-1], 4), []
    for t in range(x.shape[1]):
        decay = torch.exp(-dt[:, t, :, None] * m.A_log.exp())
        h = decay * h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        outputs.append((h * c[:, t, None]).sum(-1) + m.D * x[:, t])
    return (torch.stack(outputs, 1) * z * torch.sigmoid(z)) @ m.out_proj.weight.T


@pytest.mark.parametrize("stack", STACKS)
def test_block_is_its_definition(stack):
    block, x = make_block(stack), make_input()
    if stack == "paper":
        expected = reference_mixer(block.mixer, x)
    else:
        expected = x + reference_mixer(block.mixer, F.layer_norm(x, (20,)))
    torch.testing.assert_close(block(x, plain(x)), expected, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(block(x, plain(x)).square().sum(), list(block.mixer.parameters()))
    wanted = torch.autograd.grad(expected.square().sum(), list(block.mixer.parameters()))
    for a, b in zip(grads, wanted, strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_parameters_at_the_papers_size():
    model = ModelConfig(block="mamba")  # the defaults: d_model 512, d_state 16, d_conv 4, expand 3
    with torch.device("meta"):
        block = build(model)
    assert sum(p.numel() for p in block.mixer.parameters()) == 2_542_080
    assert sum(p.numel() for p in block.norm.parameters()) == 2 * 512


@pytest.mark.parametrize("init", ["scaled", "paper"])
def test_initial_values(init):
    model = ModelConfig(block="mamba", d_model=64, init=init)
    block = build(model)
    initialise(block, model, seed=0)
    mixer = block.mixer
    steps = F.softplus(mixer.dt_proj.bias.double())  # 192 draws, log-uniform in [0.001, 0.1]
    assert 0.99e-3 < steps.min() < 1.5e-3  # P(no draw below 1.5e-3) = 0.912^192 = 2e-8
    assert 0.067 < steps.max() < 0.101
    assert abs(steps.log10().mean() + 2.0) < 0.15  # 3.6 standard errors of 0.577 / sqrt(192)
    bound = mixer.dt_proj.in_features**-0.5
    assert 0.95 * bound < mixer.dt_proj.weight.abs().max() <= bound
    rates = torch.arange(1.0, 17.0).expand(192, 16)
    torch.testing.assert_close(mixer.A_log.exp(), rates)
    assert mixer.D.eq(1).all()


def test_only_a_residual_stack_marks_its_output_for_depth_scaling():
    assert policy_of(make_block("residual").mixer.out_proj, "weight") == TO_RESIDUAL
    assert policy_of(make_block("paper").mixer.out_proj, "weight") == MATRIX


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("chunks", [(13,), (1,) * 13, (5, 1, 1, 6), (1, 2, 10)])
def test_extend_equals_forward_in_any_chunks(stack, chunks):
    block, x = make_block(stack), make_input()
    state, outputs = block.init_state(2, x.device, x.dtype), []
    for part in x.split(chunks, 1):
        y, state = block.extend(part, state, plain(part))
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), block(x, plain(x)), rtol=1e-10, atol=1e-10)
    assert {k: v.shape for k, v in state.items()} == {"conv": (2, 2, 40), "h": (2, 40, 4)}


def test_generation_state_stays_in_float32():
    block = make_block(dtype=torch.bfloat16)
    state = block.init_state(2, torch.device("cpu"), torch.bfloat16)
    y, after = block.extend(make_input(dtype=torch.bfloat16), state, Layout.stream(2, 13))
    assert y.dtype == torch.bfloat16
    assert state["h"].dtype == after["h"].dtype == torch.float32
    assert {k: v.dtype for k, v in state.items()} == {k: v.dtype for k, v in after.items()}


@pytest.mark.parametrize("stack", STACKS)
def test_packed_documents_are_as_if_alone(stack):
    block, lengths = make_block(stack), (1, 5, 2, 5)
    x = make_input().requires_grad_()
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(2, -1)
    y = block(x, Layout.of(positions))
    alone = torch.cat([block(part, plain(part)) for part in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(y, alone, rtol=1e-10, atol=1e-10)
    (grad,) = torch.autograd.grad(y[:, 6:8].square().sum(), x)  # the third document's outputs
    assert grad[:, 6:8].abs().sum() > 0
    assert grad[:, :6].abs().sum() == grad[:, 8:].abs().sum() == 0


def test_dropout_is_on_the_branch_in_training_only():
    block, x = make_block(dropout=0.5), make_input()
    branch = block(x, plain(x)) - x
    torch.manual_seed(0)
    dropped = block.train()(x, plain(x)) - x
    kept = dropped != 0
    assert 0.35 < kept.double().mean() < 0.65  # 520 coins: 7 standard deviations
    torch.testing.assert_close(dropped[kept], 2 * branch[kept])
    assert torch.equal(
        make_block("paper", dropout=0.5).train()(x, plain(x)), make_block("paper")(x, plain(x))
    )


def test_step_sizes_keep_float32_under_autocast():
    block = make_block(dtype=torch.float32)
    low = make_input(dtype=torch.float32)[..., : block.mixer.dt_proj.in_features]
    expected = block.mixer.dt_proj(low)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.mixer.dt_proj(low), expected)


def test_matmul_flops_are_those_that_run():
    block, x = make_block(), make_input()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x, plain(x))
    elementwise = 2 * 40 * 3 + 7 * 40 * 4 + 3 * 40  # convolution, scan; E = 40, N = 4, 3 taps
    per_token = counter.get_total_flops() / x[..., 0].numel()
    assert per_token == block.flops_per_token(13) - elementwise
    assert block.flops_per_token(13) == block.flops_per_token(65_536)
