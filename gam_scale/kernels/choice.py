"""Which implementation a layer runs in: decided once, by trying those that may be there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gam_scale.errors import one_line
from gam_scale.kernels.products import Precision

PORTABLE = "portable"

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Relative, of each output and gradient: what is left of 10 bits of a factor, or of 8, after the
few products that stand one behind the other."""

_LONGEST_REASON = 200


Function = Callable[..., tuple[Tensor, ...]]


class Trial(NamedTuple):
    """A layer's computation at a run's sizes, for random inputs."""

    portable: Function  # of the inputs, and of the layout
    kernels: dict[str, Function]  # likewise, by implementation, the best one first
    inputs: dict[str, Tensor]  # float32, on the CPU
    products: tuple[str, ...]  # those of them that come in the dtype of the products
    layout: Any  # with documents; goes to a device with ``to``


class HasKernels(nn.Module):
    """A layer whose computation has implementations beside the portable one.

    Attributes:
        implementation: which of them it runs in. Set before anything is compiled: it is all that
            ``forward`` asks.
        fused: whether the portable one may count on inductor to fuse its pieces: the block that it
            is in is compiled.
        fp32_matmul: of products that are this layer's own; set before anything is compiled.
    """

    implementation: str = PORTABLE
    fused: bool = False
    fp32_matmul: Precision = "ieee"

    def trials(self, context: int) -> list[Trial]:
        """What an implementation must agree in, with sequences over ``context`` ranks.

        All have the same kernels; none where there is no kernel.
        """
        return []


class Choice(NamedTuple):
    """An implementation, and why each of those before it is not used."""

    implementation: str
    reasons: list[str]


def choose(
    trials: list[Trial],
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
    agree: Callable[[bool], bool],
) -> Choice:
    """The first implementation that runs here, and on every rank, as the portable one does.

    Args:
        trials: a layer's :meth:`HasKernels.trials`.
        device: of the run, as the next two.
        dtype: of products in bf16 or fp32.
        precision: of products in fp32.
        agree: whether all ranks say so; called by all alike.
    """
    reasons: list[str] = []
    for name in trials[0].kernels if trials else ():
        problems = (_problem(name, trial, device, dtype, precision) for trial in trials)
        reason = next(filter(None, problems), "")
        if agree(not reason):
            return Choice(name, reasons)
        reasons.append(f"{name}: {reason or 'not on every rank'}")
    return Choice(PORTABLE, reasons)


def _problem(
    name: str,
    trial: Trial,
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
) -> str:
    """Why the kernel cannot stand for the portable form; empty if it can."""
    if trial.products and dtype == torch.float32 and precision == "ieee":
        return "its products of float32 are TF32 and train.fp32_matmul is ieee"
    rounded = {
        key: x.to(device=device, dtype=dtype if key in trial.products else x.dtype)
        for key, x in trial.inputs.items()
    }
    try:
        expected = _results(trial.portable, {k: x.float() for k, x in rounded.items()}, trial)
        results = _results(trial.kernels[name], rounded, trial)
        differences = {what: _off(results[what], expected[what]) for what in expected}
    except Exception as error:  # whatever it is, the portable form is there
        text = str(error).strip().splitlines()
        return one_line(f"{type(error).__name__}: {text[0] if text else ''}", _LONGEST_REASON)
    for what, off in differences.items():
        if not off <= TOLERANCE[dtype]:  # NaN is neither
            return f"its {what} is off by {off:.1e}"
    return ""


def _results(function: Function, inputs: dict[str, Tensor], trial: Trial) -> dict[str, Tensor]:
    """Outputs, and gradients of their squares by the inputs' names."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    layout = trial.layout.to(next(iter(leaves.values())).device)
    # Under no_grad, or autocast, it would be another computation.
    device = layout.positions.device.type
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        outputs = function(*leaves.values(), layout)
        total = torch.stack([output.float().square().sum() for output in outputs]).sum()
        grads = torch.autograd.grad(total, list(leaves.values()))
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}


def _off(result: Tensor, expected: Tensor) -> float:
    result, expected = result.double(), expected.double()
    return float((result - expected).norm() / expected.norm().clamp(min=1e-30))
