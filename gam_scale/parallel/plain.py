"""The plain engine: autograd, one all-reduce of the gradients, a torch optimizer."""

import torch
from torch import Tensor, nn

from gam_scale.checkpoint.shard import PARAM, Shard
from gam_scale.data.packing import Batch
from gam_scale.model.lm import LanguageModel
from gam_scale.parallel.optimizer import GroupedOptimizer
from gam_scale.parallel.strategy import Strategy
from gam_scale.parallel.world import World


class PlainStrategy(Strategy):
    """Holds the whole model on every rank; the oracle that other engines are tested against."""

    def __init__(
        self, module: LanguageModel, optimizer: GroupedOptimizer, world: World, precision: str
    ) -> None:
        self.module, self.optimizer, self.world = module, optimizer, world
        self.precision = precision

    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """See :meth:`Strategy.backward`."""
        with self._autocast():
            loss = self.module(*batch)
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

    def shards(self) -> list[Shard]:
        """See :meth:`Strategy.shards`."""
        return whole_shards(self.module, self.optimizer, self.world)


def whole_shards(module: nn.Module, optimizer: GroupedOptimizer, world: World) -> list[Shard]:
    """Return the shards of an engine that keeps everything on every rank."""
    algorithms = optimizer.algorithms()
    shards = []
    for name, parameter in module.named_parameters():
        tensors = {PARAM: parameter.detach(), **optimizer.local_states(parameter, algorithms[name])}
        for kind, tensor in tensors.items():
            shards.append(Shard.whole(kind, name, tensor, world.rank, world.world_size))
    return shards
