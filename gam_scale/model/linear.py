"""Products with weights, in the faster of torch's two CPU libraries for them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.kernels.operator import operator
from gam_scale.model.policy import BIAS, MATRIX, Policy

_WORTH_CALLING = 1 << 22
"""Multiply-adds from which the faster library outweighs the call of a custom operator."""


class Linear(nn.Linear):
    """``nn.Linear``, computed by :func:`linear`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether there is a bias.
        weight: the weight's policy.
    """

    policy: dict[str, Policy] = {"weight": MATRIX, "bias": BIAS}

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, weight: Policy = MATRIX
    ) -> None:
        super().__init__(in_features, out_features, bias=bias)
        if weight is not MATRIX:
            self.policy = {"weight": weight, "bias": BIAS}

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``: (..., K), (N, K), (N,) -> (..., N).

    torch hands fp32 products on x86 to MKL, which does not use the AVX-512 units of AMD's
    processors; oneDNN, also part of torch, does. Measured on two cores of a Zen 5 EPYC, from
    2048 x 512 by 512 x 512 to 2048 cubed: 213 to 230 GFLOP/s with MKL, 470 to 520 with oneDNN.
    """
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def _onednn_is_faster() -> bool:
    """Return whether fp32 products on this machine's CPU should go to oneDNN.

    Decided by the processor, not by a measurement: a resumed run must compute what it did before.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    try:  # psutil does not tell a processor's maker
        is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


ONEDNN_IS_FASTER = _onednn_is_faster()


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    large = x.numel() * weight.shape[0] >= _WORTH_CALLING
    return plain and large and ONEDNN_IS_FASTER and not torch.is_autocast_enabled("cpu")


def _flops(x: torch.Size, weight: torch.Size, *args, **kwargs) -> int:
    return 2 * x[0] * x[1] * weight[0]


@operator("gam_scale::linear", keep="dear", flops=_flops)
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply 2-D matrices, either of which may be a transposed view."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _setup(ctx, inputs, output) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x = _linear(grad, weight.t(), None) if needs[0] else None
    grad_weight = _linear(grad.t(), x.t(), None) if needs[1] else None
    return grad_x, grad_weight, grad.sum(0) if ctx.has_bias and needs[2] else None


_linear.register_autograd(_backward, setup_context=_setup)
