"""Test that settings of our layer give Raven as published, written again here from its source.

The source is raven/layers/raven.py of github.com/goombalab/raven at afc329f, with its default
arguments, and with its optional output gate.
"""

import pytest
import torch
import torch.nn.functional as F
from closeness import is_alive, off, worst
from layouts import plain
from small import PUBLISHED_RAVEN
from torch import Tensor

from gam_scale.model.config import ModelConfig
from gam_scale.model.init import initialise
from gam_scale.model.memory.gate import UNIT
from gam_scale.model.mixers.raven import RavenMemory
from gam_scale.strict import from_dict

D, H, M, TOP, T = 12, 2, 7, 3, 70
K = D // H


def make_block(**changes):
    layer = PUBLISHED_RAVEN | {"n_heads": H, "n_slots": M, "top_k": TOP, "ffn": "none"} | changes
    config = from_dict(ModelConfig, {"layers": [layer], "d_model": D, "n_layers": 1}, "model")
    config.check()
    block = config.stack()[0].build(config.shape)
    initialise(block, config, seed=0)
    for name, parameter in block.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return block.double().eval()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def published(m: RavenMemory, u: Tensor) -> Tensor:
    """Compute the layer token by token, from states of zeros, with the memory's weights."""
    q_proj, k_proj, v_proj = m.qkv.weight.split(D)
    q, k, v = ((u @ w.T).unflatten(-1, (H, K)) for w in (q_proj, k_proj, v_proj))
    dt_bias = m.gate.strength.bias + UNIT
    f = -m.gate.log_rate.exp() * torch.log1p(torch.exp(u @ m.gate.strength.weight.T + dt_bias))
    q, k = rms_norm(swish(q), m.q_norm.weight), rms_norm(swish(k), m.k_norm.weight)
    v = swish(v)
    scores = torch.sigmoid(u @ m.router.weight.T).unflatten(-1, (H, M))
    place = scores.argsort(-1, descending=True).argsort(-1)
    chosen = torch.where(place < TOP, scores, 0.0)
    f = f.unsqueeze(-1) * chosen / (chosen.sum(-1, keepdim=True) + 1e-9)
    keys = values = torch.zeros(len(u), H, M, K, dtype=u.dtype)
    outputs = []
    for t in range(u.shape[1]):
        kept = torch.exp(f[:, t]).unsqueeze(-1)
        keys = kept * keys + (1 - kept) * k[:, t].unsqueeze(2)
        values = kept * values + (1 - kept) * v[:, t].unsqueeze(2)
        weights = torch.einsum("bhmk,bhk->bhm", keys, q[:, t]).softmax(-1)
        outputs.append(torch.einsum("bhm,bhmv->bhv", weights, values))
    o = swish(torch.stack(outputs, 1))
    if m.output_gate is None:
        return rms_norm(o.flatten(2), m.read_norm.weight) @ m.out.weight.T
    opened = swish(u @ m.output_gate.linear.weight.T).unflatten(-1, (H, K))
    return (rms_norm(o, m.output_gate.norm.weight) * opened).flatten(2) @ m.out.weight.T


@pytest.mark.parametrize("changes", [{}, {"output_gate": "silu", "read_norm": "heads"}], ids=str)
def test_settings_give_the_published_layer(changes):
    """The whole block has no other part of GAM's. Our shares lack the source's floor of 1e-9."""
    block = make_block(**changes)
    generator = torch.Generator().manual_seed(1)
    u = 2 * torch.randn(2, T, D, generator=generator, dtype=torch.float64)
    expected = u + published(block.memory, block.norm(u))
    found, parameters = block(u, plain(u)), list(block.memory.parameters())
    assert off(found, expected) < 1e-8
    grads = torch.autograd.grad(found.square().sum(), parameters)
    wanted = torch.autograd.grad(expected.square().sum(), parameters)
    assert all(map(is_alive, wanted))
    assert worst(off(a, b) for a, b in zip(grads, wanted, strict=True)) < 1e-7


def test_it_begins_as_published():
    """Rates are uniform up to 16 and steps are from 0.001 to 0.1; there is no bank."""
    layer = PUBLISHED_RAVEN | {"n_heads": 64, "n_slots": 4, "top_k": 2}
    config = from_dict(ModelConfig, {"layers": [layer], "d_model": 128, "n_layers": 1})
    memory = config.stack()[0].build(config.shape).memory
    initialise(memory, config, seed=0)
    rates = memory.gate.log_rate.exp()
    steps = F.softplus(memory.gate.strength.bias.double() + UNIT)
    assert 0 < rates.min() < 2 and 14 < rates.max() <= 16  # P(failure) = 2 * 0.875^64 = 4e-4
    assert 0.99e-3 < steps.min() < 1.6e-3 and 0.06 < steps.max() < 0.101  # 2 * 0.89^64 = 1e-3
    assert (
        memory.bank is None and not memory.init_state(1, rates.device, rates.dtype)["memory"].any()
    )
    assert (memory.noise, memory.score_scale) == (1.0, 1.0)
