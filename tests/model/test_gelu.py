"""The exact GELU as an operator: torch's value and both derivatives."""

import torch
import torch.nn.functional as F

from gam_scale.model.gelu import gelu


def test_value_and_gradient_are_torchs():
    torch.manual_seed(0)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    ours, theirs = gelu(x), F.gelu(x)
    assert torch.equal(ours, theirs)
    grad = torch.randn_like(x)
    (a,), (b,) = torch.autograd.grad(ours, x, grad), torch.autograd.grad(theirs, x, grad)
    assert torch.equal(a, b)
    assert torch.autograd.gradcheck(gelu, x)
