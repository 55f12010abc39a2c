"""Test products with weights: either library gives the float64 product and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from gam_scale.model import linear as module
from gam_scale.model.linear import Linear, linear

# fp32 sums of up to 300 products of unit normals: about sqrt(300) roundings of 2^-24 of size 17.
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture
def onednn(monkeypatch):
    """Let oneDNN compute every fp32 product, whatever the machine and the size."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(module, "_WORTH_CALLING", 0)


def _gradients(function, tensors, grad):
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 3), (7, 300, 17), (64, 32, 128)])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients(onednn, shape, bias):
    torch.manual_seed(0)
    rows, k, n = shape
    tensors = [torch.randn(2, rows, k), torch.randn(n, k)] + [torch.randn(n)] * bias
    grad = torch.randn(2, rows, n)
    ours = _gradients(linear, tensors, grad)
    exact = _gradients(F.linear, [t.double() for t in tensors], grad)
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == torch.float32 and a.shape == b.shape
        torch.testing.assert_close(a.double(), b, **CLOSE)


def test_transposed_views(onednn):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(30, 8).t(), torch.randn(30, 12).t(), torch.randn(8, 12)
    ours = _gradients(linear, [x, weight], grad)
    exact = _gradients(F.linear, [x.double(), weight.double()], grad)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a.double(), b, **CLOSE)


def test_other_precisions_stay_torchs(onednn):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16


def test_compiled_it_is_one_graph(onednn):
    torch.manual_seed(0)
    layer, x = Linear(16, 8), torch.randn(4, 16)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))


def test_its_flops_are_counted(onednn):
    layer, x = Linear(16, 8), torch.randn(4, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 16 * 8
