"""Test the Mamba-2 block: its recurrence, the published layer written again, states, FLOPs."""

import pytest
import recurrences
import torch
import torch.nn.functional as F
from closeness import is_alive, off, worst
from layouts import plain
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.model.config import ModelConfig
from gam_scale.model.init import initialise
from gam_scale.model.layout import Layout
from gam_scale.model.mixers.mamba2 import CHUNK, Mamba2Block, Mamba2Mixer, ssd
from gam_scale.strict import from_dict

ROWS, HEADS, WIDTH, STATES = 2, 4, 3, 5
LAYER = {"kind": "mamba2", "d_state": 5, "d_conv": 3, "head_dim": 6, "n_groups": 2}
D = 12


def make_inputs(length: int, groups: int) -> list[Tensor]:
    """Return random inputs; steps are e^-6 to e^3, a twentieth is 200, a third is 1e-9."""
    g = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    dt = torch.exp(9 * torch.rand(ROWS, length, HEADS, generator=g, dtype=torch.float64) - 6)
    dt = dt.masked_fill(torch.rand(dt.shape, generator=g) < 0.05, 200)
    dt = dt.masked_fill(torch.rand(dt.shape, generator=g) < 0.33, 1e-9)
    B, C = normal(2, ROWS, length, groups, STATES)
    A = -torch.exp(normal(HEADS))
    return [normal(ROWS, length, HEADS, WIDTH), dt, A, B, C, normal(ROWS, HEADS, WIDTH, STATES)]


def make_positions(length: int, starts: list[int]) -> Tensor:
    """Return positions: documents start at ``starts`` in row 0; row 1 continues a document."""
    rows = torch.arange(7, 7 + length).repeat(ROWS, 1)
    for start in starts:
        rows[0, start:] = torch.arange(length - start)
    return rows


def results(function, inputs, documents, dtype):
    """Return output, final state, and every input's gradient for fixed random cotangents."""
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    outputs, g = function(*inputs, documents), torch.Generator().manual_seed(9)
    loss = sum((y * torch.randn(y.shape, generator=g).to(dtype)).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "starts", [None, [0], [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK], list(range(0, 999, 3))], ids=str
)
# Tolerances: rounding of sums of some hundred terms; decays are summed in float64.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_the_chunked_form_is_the_recurrence(groups, starts, dtype, tolerance):
    for length in (1, 2, 7, CHUNK, 2 * CHUNK + 3):
        inputs, layout, positions = make_inputs(length, groups), Layout.stream(ROWS, length), None
        if starts is not None:
            positions = make_positions(length, [s for s in starts if s < length])
            layout = Layout.of(positions)
        wanted = results(recurrences.mamba2, inputs, positions, torch.float64)
        found = results(ssd, inputs, layout, dtype)
        differences = [off(x, y) for x, y in zip(found, wanted, strict=True)]
        assert worst(differences) < tolerance, f"T {length}: {differences}"


def make_block(dtype=torch.float64, **changes) -> Mamba2Block:
    settings = {"layers": [LAYER | changes], "d_model": D, "n_layers": 1, "dropout": 0.0}
    config = from_dict(ModelConfig, settings)
    config.check()
    block = config.stack()[0].build(config.shape)
    initialise(block, config, seed=0)
    return block.to(dtype).eval()


def make_input(length: int = 70, dtype=torch.float64) -> Tensor:
    return torch.randn(2, length, D, generator=torch.Generator().manual_seed(1), dtype=dtype)


def published(m: Mamba2Mixer, u: Tensor) -> Tensor:
    """Compute mamba_ssm's Mamba2 as its reference path does (modules/mamba2.py, ssd_minimal.py),
    not in chunks but by the whole matrix of each head that maps inputs to outputs."""
    inner, n = 2 * D, LAYER["n_groups"] * LAYER["d_state"]
    z, xbc, dt = (u @ m.in_proj.weight.T).split([inner, inner + 2 * n, m.n_heads], dim=-1)
    dt = torch.log1p(torch.exp(dt + m.dt_bias))
    k = LAYER["d_conv"]
    xbc = F.conv1d(F.pad(xbc.mT, (k - 1, 0)), m.conv.weight, m.conv.bias, groups=inner + 2 * n).mT
    x, B, C = (xbc * torch.sigmoid(xbc)).split([inner, n, n], dim=-1)
    x = x.unflatten(-1, (m.n_heads, -1))
    B, C = (
        v.unflatten(-1, (m.n_groups, -1)).repeat_interleave(m.n_heads // m.n_groups, 2)
        for v in (B, C)
    )
    total = (dt * -m.A_log.exp()).cumsum(1)
    decay = torch.exp(total.unsqueeze(2) - total.unsqueeze(1))  # (b, t, s, h)
    causal = torch.ones(u.shape[1], u.shape[1]).tril().bool()
    pairs = torch.einsum("bthn,bshn,btsh->btsh", C, B, decay.masked_fill(~causal[..., None], 0))
    y = torch.einsum("btsh,bsh,bshp->bthp", pairs, dt, x) + m.D[:, None] * x
    y = y.flatten(2) * z * torch.sigmoid(z)
    y = y.unflatten(-1, (m.n_groups, -1))
    y = y / torch.sqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    return (y.flatten(2) * m.norm.weight) @ m.out_proj.weight.T


def test_the_block_is_the_published_layer():
    block, u = make_block(), make_input()
    torch.nn.init.uniform_(block.mixer.norm.weight, 0.5, 2.0)
    expected = u + published(block.mixer, F.layer_norm(u, (D,)))
    found, parameters = block(u, plain(u)), list(block.mixer.parameters())
    assert off(found, expected) < 1e-12
    grads = torch.autograd.grad(found.square().sum(), parameters)
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    assert all(map(is_alive, wanted))
    assert worst(off(a, b) for a, b in zip(grads, wanted, strict=True)) < 1e-10


def test_sizes_and_initial_values_are_the_published_ones():
    config = ModelConfig(block="mamba2", d_model=512, n_layers=1)
    layer = config.stack()[0]
    mixer = layer.build(config.shape).mixer
    initialise(mixer, config, seed=0)
    assert (mixer.n_heads, mixer.head_dim, mixer.d_state, mixer.n_groups) == (16, 64, 128, 1)
    assert mixer.in_proj.weight.shape == (2 * 1024 + 2 * 128 + 16, 512)
    assert mixer.conv.weight.shape == (1024 + 2 * 128, 1, 4)
    assert mixer.out_proj.weight.shape == (512, 1024)
    assert sum(p.numel() for p in mixer.parameters()) == 1_719_600
    rates, steps = mixer.A_log.exp(), F.softplus(mixer.dt_bias.double())
    assert (
        1 <= rates.min() < 5 and 12 < rates.max() <= 16
    )  # P(failure) < 2 * 0.75^16 = 2%, one seed
    assert 0.99e-3 < steps.min() < 4e-3 and 0.025 < steps.max() < 0.101  # 2 * 0.7^16 = 0.7%
    assert mixer.D.eq(1).all() and mixer.norm.weight.eq(1).all()


@pytest.mark.parametrize("chunks", [(1,) * 70, (5, 1, 63, 1), (64, 6)])
def test_one_step_after_another_gives_what_training_does(chunks):
    """Compare outputs and states, from a given state, with documents that start on the way."""
    block, x = make_block(), make_input()
    _, before = block.extend(make_input(3), block.init_state(2, x.device, x.dtype), plain(x[:, :3]))
    positions = make_positions(70, [2, 5, 66])
    whole, final = block.extend(x, before, Layout.of(positions))
    state, outputs = before, []
    for part, where in zip(x.split(chunks, 1), positions.split(chunks, 1), strict=True):
        y, state = block.extend(part, state, Layout.of(where))
        outputs.append(y)
    assert off(torch.cat(outputs, 1), whole) < 1e-12
    assert worst(off(state[name], final[name]) for name in final) < 1e-12


def test_statistics_are_of_heads():
    """Gates are those that multiply the read-out; norms are of the state generation ends with."""
    block, x = make_block(), make_input()
    positions = make_positions(70, [2, 5, 66])
    found = block.statistics(x, Layout.of(positions))
    z = F.linear(block.norm(x), block.mixer.in_proj.weight)[..., : 2 * D]
    gates = (z * torch.sigmoid(z)).unflatten(-1, (4, 6))
    for head, values in enumerate(found["output_gate"].unbind(1)):
        assert off(values, gates[:, :, head].flatten()) < 1e-12
    whole = block.extend(x, block.init_state(2, x.device, x.dtype), Layout.of(positions))[1]["h"]
    assert off(found["state_norm"], whole.square().sum((2, 3)).sqrt()) < 1e-12
    assert found["state_norm"].shape == (2, 4) and found["horizon"].shape == (140, 4)


def test_rates_and_states_keep_float32():
    block, single = make_block(torch.bfloat16), make_block(torch.float32)
    state = block.init_state(2, torch.device("cpu"), torch.bfloat16)
    y, after = block.extend(make_input(dtype=torch.bfloat16), state, Layout.stream(2, 70))
    assert y.dtype == torch.bfloat16 and after["h"].dtype == state["h"].dtype == torch.float32
    x = make_input(dtype=torch.float32)
    expected = single.statistics(x, plain(x))["horizon"]
    with torch.autocast("cpu", torch.bfloat16):
        found = single.statistics(x, plain(x))["horizon"]
    assert found.dtype == torch.float32 and found.shape == (140, 4)
    assert off(found, expected) < 0.01  # one product in bfloat16, none in what follows it


def test_matmul_flops_are_those_of_the_recurrence_within_chunks_of_its_length():
    """torch counts every product; those within a chunk replace the recurrence's decays."""
    block = make_block(d_state=64, head_dim=24, n_groups=1)
    x = make_input(64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x, plain(x))
    projections = 2 * D * (2 * 24 + 2 * 64 + 1) + 2 * 24 * D
    convolution, state = 2 * 3 * (24 + 2 * 64), 24 * 64
    assert block.flops_per_token(64) == projections + convolution + 5 * state + 3 * 24
    within = 2 * 64 * (64 + 24) + 2 * 64  # C Bᵀ, its product with x, sums of decays
    per_token = counter.get_total_flops() / x[..., 0].numel()
    assert per_token == projections + 4 * state + within
