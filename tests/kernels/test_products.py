"""Test float32 matrix products in a given precision, which change no other products."""

import pytest
import torch
from closeness import off, worst

from gam_scale.kernels import products
from gam_scale.kernels.products import product, products_in

SHAPES = {
    "alike": ((2, 3, 4, 5), (2, 3, 5, 6)),
    "one for all": ((2, 3, 7, 4, 5), (3, 1, 5, 6)),
    "matrices": ((4, 5), (5, 6)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_a_product_and_its_gradients(shapes):
    """Test the operator that a GPU would run, which on a CPU computes the plain product."""
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    exact = [x.detach().double().requires_grad_() for x in leaves]
    y, expected = products._product(*leaves), exact[0] @ exact[1]
    assert off(y, expected) < 1e-6
    weight = torch.randn(y.shape, generator=generator)
    grads = torch.autograd.grad(y, leaves, weight)
    wanted = torch.autograd.grad(expected, exact, weight.double())
    assert worst(off(a, b) for a, b in zip(grads, wanted, strict=True)) < 1e-6
    torch.library.opcheck(torch.ops.gam_scale.product_tf32.default, tuple(leaves))


def test_torchs_own_setting_is_what_it_was():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with products_in("tf32"):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before
    with pytest.raises(KeyError), products_in("tf32"):
        raise KeyError
    assert matmul.fp32_precision == before
    torch.get_float32_matmul_precision()  # raises where the old and the new settings disagree


def test_a_cpu_and_ieee_take_the_plain_product(monkeypatch):
    monkeypatch.setattr(products, "_product", None)
    a, b = torch.randn(2, 4, 4)
    for precision in ("ieee", "tf32"):
        assert torch.equal(product(a, b, precision), a @ b)
