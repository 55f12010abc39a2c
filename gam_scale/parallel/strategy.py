"""The seam between the training loop and whatever engine runs the step."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gam_scale.data.packing import Batch
from gam_scale.parallel.world import World


class Strategy(ABC):
    """One optimizer step, cut where engines differ.

    The loop calls :meth:`backward` once per micro-batch, then :meth:`clip` and either
    :meth:`step` or :meth:`skip`. Losses are sums over tokens; ``scale`` is one over the count of
    valid targets in the *global* batch, so the gradient after the last micro-batch is that of the
    global mean, the same for every split into ranks and micro-batches.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    world: World
    precision: str

    def evaluate(self, batch: Batch) -> Tensor:
        """The loss sum of a batch (a scalar), without dropout and without gradients."""
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), self._autocast():
            loss = self.module(batch.tokens, batch.targets, batch.positions)
        self.module.train(was_training)
        return loss

    @abstractmethod
    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """Forward and backward of one micro-batch; returns its detached loss sum (a scalar).

        ``last`` marks the step's last micro-batch, after which gradients are those of all ranks.
        """

    def clip(self, max_norm: float) -> float:
        """Scale gradients to a global norm of at most ``max_norm`` (0: leave); returns the norm."""
        limit = max_norm if max_norm > 0 else float("inf")
        return float(nn.utils.clip_grad_norm_(self.module.parameters(), limit))

    @abstractmethod
    def step(self, lr: float) -> None:
        """Apply the gradients at learning rate ``lr`` and clear them."""

    @abstractmethod
    def skip(self) -> None:
        """Clear the gradients without applying them."""

    def _autocast(self) -> torch.autocast:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
