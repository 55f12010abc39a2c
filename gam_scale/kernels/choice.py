"""Choice of the implementation that a layer runs in, made once, by trying each candidate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gam_scale.errors import one_line
from gam_scale.kernels.products import Precision
from gam_scale.pulse import beat

PORTABLE = "portable"

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Largest relative error of each output and gradient, by the dtype of the products: room for
factors rounded to 10 bits (TF32) or 8 (bfloat16) in a few products, one after another."""

_LONGEST_REASON = 200


Function = Callable[..., tuple[Tensor, ...]]


class Trial(NamedTuple):
    """A layer's computation, with random inputs of a run's sizes."""

    portable: Function  # takes the inputs, then the layout
    kernels: dict[str, Function]  # the same function by implementation, the best one first
    inputs: dict[str, Tensor]  # float32, on the CPU
    products: tuple[str, ...]  # names of the inputs that come in the dtype of the products
    layout: Any  # has documents; goes to a device with ``to``


class HasKernels(nn.Module):
    """A layer whose computation may have other implementations than the portable one.

    Attributes:
        implementation: the one that the layer runs in. It must be set before anything is compiled,
            since ``forward`` looks at nothing else.
        fused: whether the portable implementation may rely on inductor to fuse its steps, because
            the layer's block is compiled.
        fp32_matmul: precision of the layer's own float32 products; set before anything is compiled.
    """

    implementation: str = PORTABLE
    fused: bool = False
    fp32_matmul: Precision = "ieee"

    def trials(self, context: int) -> list[Trial]:
        """Return the trials that a kernel has to pass, for sequences cut over ``context`` ranks.

        All trials have the same kernels; a layer without kernels has no trials.
        """
        return []


class Choice(NamedTuple):
    """The chosen implementation, and for each better one the reason why it is not used."""

    implementation: str
    reasons: list[str]


def choose(
    trials: list[Trial],
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
    agree: Callable[[bool], bool],
) -> Choice:
    """Return the first implementation that agrees with the portable one on every rank.

    Args:
        trials: a layer's :meth:`HasKernels.trials`.
        device: the run's device.
        dtype: of the run's products, bfloat16 or float32.
        precision: of the run's products in float32.
        agree: returns whether all ranks pass True; all ranks call it together.
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
    """Return why the kernel cannot replace the portable form; empty if it can."""
    beat()  # compiling a kernel can take a minute: no hang
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
    except Exception as error:  # whatever fails, the portable form remains
        text = str(error).strip().splitlines()
        return one_line(f"{type(error).__name__}: {text[0] if text else ''}", _LONGEST_REASON)
    for what, off in differences.items():
        if not off <= TOLERANCE[dtype]:  # also when NaN
            return f"its {what} is off by {off:.1e}"
    return ""


def _results(function: Function, inputs: dict[str, Tensor], trial: Trial) -> dict[str, Tensor]:
    """Return the outputs, and the gradients of the sum of their squares, by name."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    layout = trial.layout.to(next(iter(leaves.values())).device)
    # A caller's no_grad or autocast would change the computation.
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
