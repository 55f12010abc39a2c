"""Test the CPU's cheap dropout masks: rate, mean, odd sizes, independence."""

import pytest
import torch

from gam_scale.model.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_rate_and_mean(p):
    torch.manual_seed(0)
    n = 200_001  # not a multiple of the 4 lanes in a draw
    y = Dropout(p)(torch.ones(n))
    # Five standard errors of a proportion.
    assert (y == 0).float().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / n) ** 0.5)
    assert y.mean().item() == pytest.approx(1.0, rel=0.03)
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)


def test_lanes_of_one_draw_are_independent():
    torch.manual_seed(1)
    kept = (Dropout(0.5)(torch.ones(4, 100_000).t().contiguous()) > 0).double()  # lanes as columns
    correlation = torch.corrcoef(kept.t())
    assert (correlation - torch.eye(4)).abs().max().item() < 0.02  # 6 standard errors


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0, 4)])
def test_any_shape(shape):
    assert Dropout(0.5)(torch.ones(shape)).shape == shape


def test_identity_in_evaluation_and_at_zero():
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_the_gradient_is_the_mask_and_the_seed_decides_it():
    x = torch.ones(1000, requires_grad=True)
    torch.manual_seed(5)
    y = Dropout(0.3)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(5)
    assert torch.equal(Dropout(0.3)(x), y)
