"""Test the recipe around phase and scan against its formulas, written a second time here."""

import recurrences
import torch
import torch.nn.functional as F
from closeness import off
from layouts import plain
from torch import Tensor

from gam_scale.model.config import ModelConfig
from gam_scale.model.lm import build_model
from gam_scale.model.memory.base import WrittenMemory
from gam_scale.strict import from_dict

B, T, D, HEADS = 2, 150, 16, 2  # three of phase's chunks, the last one not full


def make_memory(**layer: object) -> WrittenMemory:
    """Build a memory in float64 with random parameters, those that start as 0 or 1 included."""
    settings = {"layers": [layer], "n_layers": 1, "d_model": D, "vocab_size": 23}
    memory = build_model(from_dict(ModelConfig, settings), 0).double().blocks[0].memory
    g = torch.Generator().manual_seed(0)
    for p in memory.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.4
    return memory


def tokens() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1)).double()


def convolved(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve (B, T, C), each channel with its own taps over the last tokens."""
    taps = weight.shape[-1]
    padded = F.pad(x.mT, (taps - 1, 0))
    return F.conv1d(padded, weight, groups=len(weight)).mT


def of_unit_size(y: Tensor, weight: Tensor) -> Tensor:
    return y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def test_scan():
    memory = make_memory(kind="scan", conv_size=4, activation="silu", output_norm=True)
    w, h = dict(memory.named_parameters()), tokens()
    x, z = (h @ w["value.weight"].T).split(D, -1)
    x = F.silu(convolved(x, w["conv.weight"]))
    decay = memory.gate(h).squeeze(-2)
    y, _ = recurrences.scan(x, decay, torch.zeros(B, D).double())
    expected = (of_unit_size(y, w["norm.weight"]) * F.silu(z)) @ w["out.weight"].T
    assert off(memory(h, plain(h)), expected) < 1e-12


def test_phase():
    recipe = {"conv_size": 4, "activation": "silu", "output_gate": "silu"}
    memory = make_memory(kind="phase", n_heads=HEADS, **recipe)
    w, h = dict(memory.named_parameters()), tokens()
    qkv = F.silu(convolved(h @ w["qkv.weight"].T, w["conv.weight"]))
    q, k, v = (x.unflatten(-1, (HEADS, -1)) for x in qkv.split(D, -1))
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    state = torch.zeros(B, HEADS, D // HEADS // 2, D // HEADS).double()
    y, _ = recurrences.phase(q, k, v, memory.gate(h).squeeze(-2), state)
    y = of_unit_size(y, w["output_gate.norm.weight"])
    gate = F.silu(h @ w["output_gate.linear.weight"].T).unflatten(-1, (HEADS, -1))
    assert off(memory(h, plain(h)), (y * gate).flatten(2) @ w["out.weight"].T) < 1e-12
