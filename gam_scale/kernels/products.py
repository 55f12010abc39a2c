"""Products of the memories' float32 matrices, in TF32 if a run asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from gam_scale.kernels.operator import operator

Precision = Literal["ieee", "tf32"]
"""Value of ``train.fp32_matmul``."""


def product(a: Tensor, b: Tensor, precision: Precision) -> Tensor:
    """Return ``a @ b`` of (..., M, K) and (..., K, N), whose leading dimensions broadcast.

    With ``tf32``, float32 matrices on a GPU are multiplied in TF32 (10 bits of each factor, sums in
    float32), whatever torch's own setting; for all others the precision changes nothing.
    """
    if precision == "ieee" or a.device.type != "cuda" or a.dtype != torch.float32:
        return a @ b
    return _product(a, b)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Let torch multiply float32 matrices on GPUs in TF32 within the context, if so asked."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if precision == "tf32":
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _flops(a: torch.Size, b: torch.Size, *_: Any, **__: Any) -> int:
    leading = torch.broadcast_shapes(a[:-2], b[:-2])
    return 2 * leading.numel() * a[-2] * a[-1] * b[-1]


@operator("gam_scale::product_tf32", keep="dear", flops=_flops)
def _product(a: Tensor, b: Tensor) -> Tensor:
    with products_in("tf32"):
        return a @ b


@_product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.new_empty((*leading, a.shape[-2], b.shape[-1]))


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
    a, b = ctx.saved_tensors
    grad_a, grad_b = _product(grad, b.mT), _product(a.mT, grad)
    return grad_a.sum_to_size(a.shape), grad_b.sum_to_size(b.shape)


_product.register_autograd(_gradients, setup_context=_save)
