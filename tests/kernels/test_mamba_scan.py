"""Test mamba_ssm's scan as an operator, on a stand-in: documents, gradients, tracing."""

import pytest
import stand_ins
import torch
from closeness import off, worst

from gam_scale.kernels.mamba import mamba_ssm_scan
from gam_scale.model.selective_scan import selective_scan

ROWS, LENGTH, WIDTH, STATES = 2, 40, 5, 3
RESETS = {
    "none": [],
    "first token": [0],
    "last token": [39],
    "ragged": [3, 4, 20],
    "all": range(40),
}


@pytest.fixture(autouse=True)
def kernel(monkeypatch):
    stand_ins.install(monkeypatch)


def make_inputs(slowest=1.0):
    generator = torch.Generator().manual_seed(0)
    x, dt = torch.randn(2, ROWS, LENGTH, WIDTH, generator=generator)
    B, C = torch.randn(2, ROWS, LENGTH, STATES, generator=generator)
    A = -slowest * torch.arange(1, STATES + 1.0).repeat(WIDTH, 1)
    A = A * (1 + torch.rand(WIDTH, 1, generator=generator))
    D = torch.randn(WIDTH, generator=generator)
    return [x, torch.nn.functional.softplus(dt), A, B, C, D]


def positions_of(resets):
    """Return positions: documents start at ``resets`` in row 0, and nowhere in row 1."""
    positions = torch.arange(7, 7 + LENGTH).repeat(ROWS, 1)
    for start in resets:
        positions[0, start:] = torch.arange(LENGTH - start)
    return positions


@pytest.mark.parametrize("slowest", [1.0, 1e-3])
@pytest.mark.parametrize("resets", RESETS.values(), ids=RESETS)
def test_documents(resets, slowest):
    """A new document forgets all, whatever the rates; gradients are the recurrence's."""
    positions, inputs = positions_of(resets), make_inputs(slowest)
    found = [x.requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y = mamba_ssm_scan(*found, starts=positions == 0)
    expected = selective_scan(*exact, positions == 0)[0]
    assert off(y, expected) < 1e-5  # float32, except inside the stand-in
    weight = torch.linspace(-1, 1, WIDTH)
    grads = zip(
        torch.autograd.grad((y * weight).sum(), found),
        torch.autograd.grad((expected * weight).sum(), exact),
        strict=True,
    )
    assert worst(off(a, b) for a, b in grads) < 1e-5


def test_torch_can_trace_it():
    x, dt, A, B, C, _ = (value.requires_grad_() for value in make_inputs())
    torch.library.opcheck(torch.ops.gam_scale.mamba_ssm_scan.default, (x, dt, A, B, C))


def test_torch_can_trace_the_dual_of_mamba2():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, LENGTH, 2, WIDTH, generator=g)
    dt = torch.rand(ROWS, LENGTH, 2, generator=g)
    B, C = torch.randn(2, ROWS, LENGTH, 1, STATES, generator=g)
    inputs = [x, dt, -torch.ones(2), B, C, torch.randn(ROWS, 2, WIDTH, STATES, generator=g)]
    inputs = [v.clone().requires_grad_() for v in inputs]
    documents = torch.arange(LENGTH, dtype=torch.int32).repeat(ROWS, 1) // 15
    torch.library.opcheck(torch.ops.gam_scale.mamba_ssm_ssd.default, (*inputs, documents))
