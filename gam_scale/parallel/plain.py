"""The plain engine: autograd, one all-reduce of the gradients, a torch optimizer."""

import torch
from torch import Tensor, nn

from gam_scale.data.packing import Batch
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World


class PlainStrategy(Strategy):
    """Every rank holds the whole model; the oracle that other engines are measured against."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, world: World, precision: str
    ) -> None:
        self.module, self.optimizer, self.world = module, optimizer, world
        self.precision = precision

    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """See :meth:`Strategy.backward`."""
        with self._autocast():
            loss = self.module(batch.tokens, batch.targets, batch.positions)
        (loss * scale).backward()
        if last:
            self._sum_gradients()
        return loss.detach()

    def _sum_gradients(self) -> None:
        if self.world.world_size == 1:
            return
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        self.world.all_reduce(flat)
        for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            grad.copy_(part.view_as(grad))

    def step(self, lr: float) -> None:
        """See :meth:`Strategy.step`."""
        self._set_lr(lr)
        self.optimizer.step()
        self.skip()

    def skip(self) -> None:
        """See :meth:`Strategy.skip`."""
        self.optimizer.zero_grad(set_to_none=True)
