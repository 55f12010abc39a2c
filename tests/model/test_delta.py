"""Test the gated delta rule with the recipe around it: presets against published layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from closeness import is_alive, off
from layouts import plain
from torch import Tensor

from gam_scale.config import ModelConfig
from gam_scale.model.lm import build_model
from gam_scale.model.memory.gate import DecayGate
from gam_scale.model.memory.pairs import MIN_LOG_DECAY
from gam_scale.model.parts import MIXERS
from gam_scale.model.policy import Draw, policies, policy_of
from gam_scale.strict import from_dict

D, T, HEADS = 16, 70, 2


def memory_of(**layer: object) -> torch.nn.Module:
    """Return a memory whose parameters are all perturbed: none stays zero or one."""
    settings = {"layers": [layer], "d_model": D, "n_layers": 1, "vocab_size": 5}
    config = from_dict(ModelConfig, settings | {"position": "none", "dropout": 0.0})
    config.check()
    memory = build_model(config, seed=0).double().blocks[0].memory
    generator = torch.Generator().manual_seed(0)
    for p in memory.parameters():
        p.data += 0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return memory


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Return SiLU of torch's causal depthwise convolution of (B, T, C) with (C, 1, taps)."""
    padded = F.pad(x.mT, (weight.shape[-1] - 1, 0))
    return F.silu(F.conv1d(padded, weight, groups=weight.shape[0]).mT)


def heads_of(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1))


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def softplus_bias(m) -> Tensor:
    """Return the published bias of a step: our gate's own bias plus a constant."""
    return m["gate.strength.bias"] + math.log(math.e - 1)


def gdn_gates(m, h: Tensor, most: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return decays, erase and write strengths of arXiv 2412.06464, (B, T, H, 1) each."""
    step = F.softplus(h @ m["gate.strength.weight"].T + softplus_bias(m))
    decay = torch.exp(-m["gate.log_rate"].exp().flatten() * step)
    beta = most * torch.sigmoid(h @ m["beta.weight"].T)
    return decay.unsqueeze(-1), beta.unsqueeze(-1), beta.unsqueeze(-1)


def kda_gates(m, h: Tensor, most: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same of arXiv 2510.26692, with a decay of each channel from a low-rank projection.
    Decays belong to heads of keys; heads of values share them."""
    low = h @ m["gate.down.weight"].T
    step = F.softplus(low @ m["gate.strength.weight"].T + softplus_bias(m))
    log_decay = -m["gate.log_rate"].exp().view(-1, 1) * heads_of(step, HEADS)
    assert log_decay.min() > MIN_LOG_DECAY  # our decays are bounded there
    if "beta.weight" not in m:
        return log_decay.exp(), *gdn2_gates(m, h, most)
    beta = most * torch.sigmoid(h @ m["beta.weight"].T).unsqueeze(-1)
    return log_decay.exp(), beta, beta


def gdn2_gates(m, h: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Return erase and write strengths of arXiv 2605.22791, for channels of keys and values."""
    erase, write = (torch.sigmoid(h @ m[f"{name}.weight"].T) for name in ("erase", "write"))
    width = len(m["output_gate.norm.weight"])
    return most * heads_of(erase, HEADS), heads_of(write, write.shape[-1] // width)


def published(m, h: Tensor, value_heads: int, most: float) -> Tensor:
    """Compute a published layer token by token from its formulas, with ``m``'s weights."""
    wide = m["out.weight"].shape[1]  # width of all values
    keys = (m["qkv.weight"].shape[0] - wide) // 2
    parts = [keys, keys, wide]
    weights, taps = m["qkv.weight"].split(parts), m["conv.weight"].split(parts)
    q, k, v = (convolved(h @ w.T, c) for w, c in zip(weights, taps, strict=True))
    q, k = (unit(heads_of(x, HEADS)) for x in (q, k))
    by_channel = "gate.down.weight" in m
    decay, erase, write = (kda_gates if by_channel else gdn_gates)(m, h, most)
    q, k, decay, erase, write = (
        x.repeat_interleave(value_heads // x.shape[2], dim=2) for x in (q, k, decay, erase, write)
    )
    v = heads_of(v, value_heads)
    S, read = h.new_zeros(len(h), value_heads, q.shape[-1], v.shape[-1]), []
    for t in range(h.shape[1]):
        S = decay[:, t].unsqueeze(-1) * S
        old = torch.einsum("bhkv,bhk->bhv", S, erase[:, t] * k[:, t])
        S = S + k[:, t].unsqueeze(-1) * (write[:, t] * v[:, t] - old).unsqueeze(-2)
        read.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t] * q.shape[-1] ** -0.5))
    o = torch.stack(read, dim=1)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m["output_gate.norm.weight"]
    if by_channel:
        low = h @ m["output_gate.down.weight"].T
        gate = torch.sigmoid(low @ m["output_gate.linear.weight"].T + m["output_gate.linear.bias"])
    else:
        gate = F.silu(h @ m["output_gate.linear.weight"].T)
    return (o.flatten(2) * gate) @ m["out.weight"].T


@pytest.mark.parametrize(
    ("kind", "value_heads", "most"),
    [
        ("gdn", 2, 1),
        ("gdn", 4, 2),
        ("kda", 2, 1),
        ("kda", 4, 2),
        ("gdn2", 2, 1),
        ("gdn2", 4, 2),
    ],
)
def test_presets_are_the_published_layers(kind, value_heads, most):
    settings = {"n_heads": HEADS, "n_value_heads": value_heads, "max_beta": most}
    memory = memory_of(kind=kind, **settings)
    h = torch.randn(2, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, weights = memory(h, plain(h)), dict(memory.named_parameters())
    expected = published(weights, h, value_heads, most)
    assert not {"beta.bias", "erase.bias", "write.bias"} & weights.keys()
    assert off(found, expected) < 1e-9  # float64, through 70 steps
    parameters = list(memory.parameters())
    grads = (torch.autograd.grad(y.square().sum(), parameters) for y in (found, expected))
    for (name, _), a, b in zip(memory.named_parameters(), *grads, strict=True):
        assert off(a, b) < 1e-8, name  # sums of 140 tokens


def test_gam_delta_is_delta_by_other_settings():
    assert {"gdn", "kda", "gdn2", "gam_delta"} == {
        kind for kind in MIXERS if MIXERS[kind].preset_of == "delta"
    }
    preset = memory_of(kind="gam_delta", n_heads=HEADS)
    settings = {"fusion": "local", "activation": "silu", "output_gate": "silu"}
    settings |= {"strength_bias": False, "decay_gates": True, "conv_size": 4}
    spelled = memory_of(kind="delta", n_heads=HEADS, **settings)
    h = torch.randn(2, T, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(preset(h, plain(h)), spelled(h, plain(h)))
    assert list(policies(preset)) == list(policies(spelled))


@pytest.mark.parametrize(
    ("d", "n_heads", "position", "width"),
    [(64, 2, "none", 24), (64, 5, "none", 10), (50, 3, "none", 12), (50, 4, "rotary", 10)]
    + [(16, 16, "rotary", 2)],
)
def test_gdn_is_as_large_as_published(d, n_heads, position, width):
    """Keys have 0.75 d channels in all, rounded for each head; values have twice as many."""
    layer = {"kind": "gdn", "n_heads": n_heads}
    config = from_dict(ModelConfig, {"layers": [layer], "d_model": d, "position": position})
    config.check()
    heads = config.stack()[0].heads(config.shape)
    assert (heads.key_width, heads.value_width) == (width, 2 * width)
    if 4 * width * n_heads == 3 * d:
        memory = config.stack()[0].build_memory(config.shape)
        matrices = [memory.qkv, memory.out, memory.output_gate.linear]
        assert sum(m.weight.numel() for m in matrices) == 6 * d * d


@pytest.mark.parametrize(
    "layer",
    [
        {"kind": "kda", "output_gate": "none"},
        {"kind": "gdn2", "output_gate": "none", "strength_per": "head"},
        {"kind": "gdn", "paths": "both", "conv_size": 0},
        {"kind": "gam_delta", "paths": "global"},
        {"kind": "gam_delta", "paths": "local"},
        {"kind": "gam_delta", "output_gate": "none", "fusion": "gate"},
    ],
    ids=str,
)
def test_what_a_preset_has_by_default_gives_way(layer):
    """Each setting alone gives a valid model, in which every parameter learns."""
    settings = {"layers": [layer], "n_layers": 1, "d_model": D, "vocab_size": 5, "dropout": 0.0}
    config = from_dict(ModelConfig, settings)
    config.check()
    model = build_model(config, seed=0)
    tokens = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(0))
    model(tokens, tokens).backward()
    assert all(is_alive(p.grad) for p in model.blocks.parameters())


def test_gates_of_channels_are_projections_of_the_runs_precision():
    """They are computed in float32 from the sigmoid on."""
    memory = memory_of(kind="gdn2", n_heads=HEADS).float()
    h = torch.randn(2, T, D, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        decays, strengths = memory.gates(h)
    low = h.bfloat16()
    for part, linear in zip(strengths.chunk(2, -1), (memory.erase, memory.write), strict=True):
        product = F.linear(low, linear.weight.bfloat16())
        assert torch.equal(part.flatten(2), torch.sigmoid(product.float()))
    assert strengths.dtype == torch.float32 and torch.equal(decays, memory.gates(h)[0])


def test_decays_begin_as_published():
    gate = DecayGate(4, 4096, (16.0, 64.0))
    gate.begin_as_published(least_rate=0.0)
    for module, name in ((gate, "log_rate"), (gate.strength, "bias")):
        generator = torch.Generator().manual_seed(0)
        policy = policy_of(module, name)
        policy.init(module, getattr(module, name).data, Draw(generator, "scaled", 1))
        assert policy.decay == "never"
    torch.nn.init.zeros_(gate.strength.weight)
    rates = gate.log_rate.exp().flatten()
    steps = -gate(torch.zeros(1, 1, 4)).flatten() / rates
    assert 0 < rates.min() < 0.1 and 15.9 < rates.max() <= 16 and abs(rates.mean() - 8) < 0.3
    assert 0.99e-3 < steps.min() < 1.1e-3 and 0.09 < steps.max() < 0.101
    assert abs(steps.log10().mean() + 2) < 0.05  # the middle of 0.001 and 0.1, in the logarithm
