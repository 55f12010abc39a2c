"""Unit triangular systems of chunks, solved in the layout in which CPU libraries are fast."""

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator


def solve_unit_lower(system: Tensor, right: Tensor) -> Tensor:
    """Return ``(I + system)^-1 right`` for strictly lower triangular systems.

    Args:
        system: (..., C, C); entries on and above the diagonal count as 0.
        right: (..., C, D).

    A row-major matrix is a transposed column-major one, so the transposed problem,
    ``Xᵀ (I + system)ᵀ = rightᵀ``, needs no copies. Measured on one core of a Zen 5 EPYC, 128
    systems of C 64 and D 128: 2.6 ms, and 2.7 ms backward. The original problem takes 3.9 to 6.9
    and 4.8 to 7.8 ms, depending on the layout that the compiler happens to give the operands.
    """
    return _solve(system, right)


# A custom operator, so that the compiler leaves the layout alone.
@operator("gam_scale::solve_unit_lower", keep="dear")
def _solve(system: Tensor, right: Tensor) -> Tensor:
    return _from_right(system.contiguous().mT, right, upper=True)


@operator("gam_scale::solve_unit_lower_transposed")
def _solve_transposed(system: Tensor, right: Tensor) -> Tensor:
    return _from_right(system.contiguous(), right, upper=False)


def _from_right(matrix: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    """Return the X with ``Xᵀ matrix = rightᵀ``, contiguous."""
    solved = torch.linalg.solve_triangular(
        matrix, right.contiguous().mT, upper=upper, left=False, unitriangular=True
    )
    return solved.mT.contiguous()


@_solve.register_fake
@_solve_transposed.register_fake
def _(system: Tensor, right: Tensor) -> Tensor:
    return right.new_empty(right.shape)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    system, solved = ctx.saved_tensors
    grad_right = _solve_transposed(system, grad)
    return -(grad_right @ solved.mT).tril(-1), grad_right


_solve.register_autograd(_gradients, setup_context=_save)
