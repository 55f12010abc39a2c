"""Test the triangular solve of chunks against torch's inverse, with gradients, in any layout."""

import pytest
import torch

from gam_scale.model.memory.solve import solve_unit_lower


@pytest.mark.parametrize("size", [1, 2, 16, 64])
@pytest.mark.parametrize("permuted", [False, True])
def test_it_solves_and_has_the_gradients_of_the_solution(size, permuted):
    generator = torch.Generator().manual_seed(size)
    # Entries on and above the diagonal must change nothing and get no gradient.
    system = torch.rand(3, 2, size, size, generator=generator, dtype=torch.float64)
    right, grad = torch.randn(2, 3, 2, size, 5, generator=generator, dtype=torch.float64)
    if permuted:
        system, right = (
            x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0) for x in (system, right)
        )
    leaves = [x.requires_grad_() for x in (system, right)]
    unit = torch.eye(size, dtype=torch.float64)
    expected = torch.linalg.inv(system.tril(-1) + unit) @ right
    found = solve_unit_lower(system, right)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    pairs = zip(
        torch.autograd.grad(found, leaves, grad),
        torch.autograd.grad(expected, leaves, grad),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_it_is_a_sound_operator():
    system, right = torch.rand(2, 8, 8), torch.randn(2, 8, 3)
    arguments = (system.requires_grad_(), right.requires_grad_())
    torch.library.opcheck(torch.ops.gam_scale.solve_unit_lower.default, arguments)
