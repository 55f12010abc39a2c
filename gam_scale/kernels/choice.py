"""Which implementation a layer runs in: decided once, by trying those that may be there."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from gam_scale.errors import one_line
from gam_scale.kernels.products import Precision

PORTABLE = "portable"

TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Relative, of each output and gradient: what is left of 10 bits of a factor, or of 8, after the
few products that stand one behind the other."""

_LONGEST_REASON = 200


class Trial(NamedTuple):
    """A layer's computation at a run's sizes, for random inputs."""

    portable: Callable[..., tuple[Tensor, ...]]  # of the inputs, and of the layout
    inputs: dict[str, Tensor]  # float32, on the CPU
    products: tuple[str, ...]  # those of them that come in the dtype of the products
    layout: Any  # with documents; goes to a device with ``to``


class HasKernels(nn.Module):
    """A layer whose computation has implementations beside the portable one.

    Attributes:
        kernels: by name, the best one first; called as the portable form is.
        implementation: which of them it runs in. Set before anything is compiled: it is all that
            ``forward`` asks.
    """

    kernels: ClassVar[dict[str, Callable[..., tuple[Tensor, ...]]]]
    implementation: str = PORTABLE

    def trials(self, context: int) -> list[Trial]:
        """What an implementation must agree in, with sequences over ``context`` ranks."""
        raise NotImplementedError


class Choice(NamedTuple):
    """An implementation, and why each of those before it is not used."""

    implementation: str
    reasons: list[str]


def choose(
    layer: HasKernels,
    trials: Iterable[Trial],
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
    agree: Callable[[bool], bool],
) -> Choice:
    """The first implementation that runs here, and on every rank, as the portable one does.

    Args:
        layer: says which there are.
        trials: its :meth:`HasKernels.trials`.
        device: of the run, as the next two.
        dtype: of products in bf16 or fp32.
        precision: of products in fp32.
        agree: whether all ranks say so; called by all alike.
    """
    reasons, trials = [], list(trials)
    for name, kernel in layer.kernels.items():
        found = (_problem(kernel, trial, device, dtype, precision) for trial in trials)
        reason = next(filter(None, found), "")
        if agree(not reason):
            return Choice(name, reasons)
        reasons.append(f"{name}: {reason or 'not on every rank'}")
    return Choice(PORTABLE, reasons)


def _problem(
    kernel: Callable[..., tuple[Tensor, ...]],
    trial: Trial,
    device: torch.device,
    dtype: torch.dtype,
    precision: Precision,
) -> str:
    """Why the kernel cannot stand for the portable form; empty if it can."""
    if trial.products and dtype == torch.float32 and precision == "ieee":
        return "its products of float32 are TF32 and train.fp32_matmul is ieee"
    rounded = {
        name: x.to(device=device, dtype=dtype if name in trial.products else x.dtype)
        for name, x in trial.inputs.items()
    }
    try:
        expected = _results(trial.portable, {k: x.float() for k, x in rounded.items()}, trial)
        found = _results(kernel, rounded, trial)
        differences = {name: _off(found[name], expected[name]) for name in expected}
    except Exception as error:  # whatever it is, the portable form is there
        text = str(error).strip().splitlines()
        return one_line(f"{type(error).__name__}: {text[0] if text else ''}", _LONGEST_REASON)
    for name, off in differences.items():
        if not off <= TOLERANCE[dtype]:  # NaN is neither
            return f"its {name} is off by {off:.1e}"
    return ""


def _results(
    function: Callable[..., tuple[Tensor, ...]], inputs: dict[str, Tensor], trial: Trial
) -> dict[str, Tensor]:
    """Outputs, and gradients of their squares by the inputs' names."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    layout = trial.layout.to(next(iter(leaves.values())).device)
    # Under no_grad, or autocast, it would be another computation.
    device = layout.positions.device.type
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        outputs = function(*leaves.values(), layout)
        total = sum(output.float().square().sum() for output in outputs)
        grads = torch.autograd.grad(total, list(leaves.values()))
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    return named | {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}


def _off(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))
