"""Muon, an optimizer that steps a matrix by its orthogonalised momentum (arXiv 2502.16982)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_scale.checkpoint.shard import StateSpec
from gam_scale.config import TrainConfig
from gam_scale.model.linear import linear
from gam_scale.parallel.algorithm import Algorithm, Group

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration, steepest at 0: kellerjordan.github.io/posts/muon."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update's elements at a learning rate of 1, about that of AdamW's updates:
one learning rate and one weight decay then serve both."""
SMALLEST = 1e-7
"""The least Frobenius norm by which a matrix is divided; a smaller norm counts as this one."""


class Muon(torch.optim.Optimizer):
    """Steps each matrix by the orthogonal matrix nearest to its Nesterov momentum.

        M <- mu M + (1 - mu) G
        W <- (1 - lr decay) W - lr 0.2 sqrt(max(rows, columns)) orthogonal((1 - mu) G + mu M)

    An orthogonal matrix's elements have a mean square of 1 / max(rows, columns), so that an
    update's elements have a root mean square of 0.2, as AdamW's do (arXiv 2502.16982, section 2.2).
    If a parameter is a stack of matrices, such as those of queries, keys and values, each matrix is
    orthogonalised by itself: in the stack as a whole, those with small gradients would hardly move.

    ``torch.optim.Muon`` with ``match_rms_adamw`` computes the same, but only for whole parameters
    and in bfloat16, and it cannot skip a step without waiting for the device.

    Args:
        groups: as torch takes them, each also with ``stacks``, one entry for each parameter: see
            :attr:`gam_scale.model.policy.Policy.stack`.
        momentum: mu.
        dtype: in which matrices are orthogonalised.

    Attributes:
        found_inf: if not 0, the next step changes nothing, as with torch's fused optimizers.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: list[Group], momentum: float, dtype: torch.dtype) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0})
        self.momentum, self.dtype = momentum, dtype
        self._step_supports_amp_scaling = True  # torch's name for having found_inf

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients."""
        for group in self.param_groups:
            for parameter, stack in zip(group["params"], group["stacks"], strict=True):
                if parameter.grad is not None:
                    self._update(parameter, stack, group["lr"], group["weight_decay"])

    def _update(self, parameter: Tensor, stack: Sequence[int], lr: float, decay: float) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"]
        share: float | Tensor = 1.0
        if self.found_inf is not None:  # where it is not 0, keep the momentum, update nothing
            gradient = torch.where(self.found_inf > 0, momentum, gradient)
            share = 1.0 - self.found_inf
        momentum.lerp_(gradient, 1 - self.momentum)
        update = gradient.lerp(momentum, self.momentum)
        parameter.mul_(1 - share * (lr * decay))
        rows = list(stack) or [len(parameter)]
        for old, new in zip(parameter.split(rows), update.split(rows), strict=True):
            size = RMS * max(new.shape) ** 0.5
            old.sub_(orthogonal(new, self.dtype).mul_(share * (lr * size)))


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Approximate the orthogonal matrix nearest to ``matrix``, whose singular values are all 1.

    After so few iterations the result's singular values are 0.7 to 1.2, except those that were
    almost 0 beside the largest; this trains as well.

    Args:
        matrix: (rows, columns).
        dtype: of the matrix products.

    Returns:
        The approximation, of the same shape and dtype as ``matrix``.
    """
    x, (a, b, c) = matrix.to(dtype), QUINTIC
    is_tall = len(x) > x.shape[1]
    x = x.mT if is_tall else x
    x = x / x.norm().clamp(min=SMALLEST)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = linear(x, x)
        x = _plus(a, x, 1.0, _plus(b, gram, c, gram, gram), x)
    return (x.mT if is_tall else x).to(matrix.dtype)


def _plus(beta: float, term: Tensor, alpha: float, left: Tensor, right: Tensor) -> Tensor:
    """Return ``beta term + alpha left right``."""
    if term.is_cpu:  # where `linear` calls the faster library
        return linear(left, right.mT).mul_(alpha).add_(term, alpha=beta)
    return torch.addmm(term, left, right, beta=beta, alpha=alpha)


def _flops(shape: Sequence[int], stack: Sequence[int]) -> float:
    """Return the FLOPs of one step of a parameter, a multiply-add counted as two."""
    total = 0.0
    for rows in stack or [shape[0]]:
        less, more = sorted((rows, shape[1]))
        total += ITERATIONS * (4.0 * less * less * more + 2.0 * less**3)
    return total


def _made(groups: list[Group], train: TrainConfig) -> Muon:
    # A float32 run orthogonalises in float32: another order of a sum then moves a loss by 1e-6.
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    return Muon(groups, train.muon_momentum, dtype)


MUON = Algorithm(
    _made,
    lambda shape: {"momentum_buffer": StateSpec(tuple(shape))},
    elementwise=False,
    flops=_flops,
    additive=True,
)
