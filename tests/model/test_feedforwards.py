"""Test feed-forward networks and norms against plain formulas, in float64; and sizes."""

import pytest
import torch
import torch.nn.functional as F
from closeness import off
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.model.config import ModelConfig
from gam_scale.model.parts import FEED_FORWARDS, NORMS
from gam_scale.strict import from_dict

D = 12


def built(settings: dict) -> nn.Module:
    """Build a module from its settings, with random weights."""
    config = from_dict(ModelConfig, {"d_model": D, "dropout": 0.0, **settings})
    part = config.stack()[0].ffn if "ffn" in settings else config.final_norm()
    module = part.build(config.shape).double()
    for i, p in enumerate(module.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    return module


def mlp(m: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(x @ m.up.weight.T + m.up.bias) @ m.down.weight.T + m.down.bias


def relu2(m: nn.Module, x: Tensor) -> Tensor:
    return (x @ m.up.weight.T + m.up.bias).clamp(min=0) ** 2 @ m.down.weight.T + m.down.bias


def swiglu(m: nn.Module, x: Tensor) -> Tensor:
    gate, up = (x @ w.T + b for w, b in zip(m.up.weight.chunk(2), m.up.bias.chunk(2), strict=True))
    return (gate / (1 + torch.exp(-gate)) * up) @ m.down.weight.T + m.down.bias


def layernorm(m: nn.Module, x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.weight + m.bias


def rmsnorm(m: nn.Module, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.weight


PLAIN = {"mlp": mlp, "relu2": relu2, "swiglu": swiglu, "layernorm": layernorm, "rmsnorm": rmsnorm}


def test_every_kind_has_a_plain_writing():
    assert {*FEED_FORWARDS, *NORMS} == {*PLAIN, "none"}


@pytest.mark.parametrize("kind", PLAIN)
def test_is_its_plain_writing(kind):
    module = built({"ffn" if kind in FEED_FORWARDS else "norm": kind})
    x = torch.randn(3, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    x.requires_grad_()
    leaves = [x, *module.parameters()]
    found, expected = module(x), PLAIN[kind](module, x)
    assert off(found, expected) < 1e-12
    grads = (torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected))
    for a, b in zip(*grads, strict=True):
        assert off(a, b) < 1e-12


@pytest.mark.parametrize(("mult", "width"), [(4, 32), (3, 24), (1, 8)])
def test_swiglu_has_about_as_many_parameters_as_two_matrices(mult, width):
    assert built({"ffn": {"kind": "swiglu", "mult": mult}}).down.in_features == width


@pytest.mark.parametrize("kind", sorted({*FEED_FORWARDS} - {"none"}))
def test_a_width_in_channels_stands_for_a_multiple_and_not_beside_it(kind):
    assert built({"ffn": {"kind": kind, "width": 37}}).down.in_features == 37
    both = {"ffn": {"kind": kind, "width": 37, "mult": 3}}
    with pytest.raises(UserError, match="model.ffn.width is 37 beside mult 3"):
        from_dict(ModelConfig, both).check()


@pytest.mark.parametrize("kind", list(NORMS))
def test_a_norm_takes_weights_that_were_gathered_in_bf16(kind):
    module = built({"norm": kind}).float()
    x = torch.randn(3, D, generator=torch.Generator().manual_seed(9))
    rounded = {name: p.detach().bfloat16() for name, p in module.named_parameters()}
    expected = built({"norm": kind}).float()
    expected.load_state_dict({name: p.float() for name, p in rounded.items()})
    with torch.no_grad():
        for name, p in rounded.items():
            setattr(module, name, nn.Parameter(p))
        y = module(x)
        assert y.dtype == torch.float32 and off(y, expected(x)) < 1e-6
