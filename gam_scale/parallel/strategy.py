"""The interface between the training loop and whichever engine runs the step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gam_scale.checkpoint.shard import PARAM, Shard, StateSpec
from gam_scale.data.packing import Batch
from gam_scale.model.carry import Carry
from gam_scale.model.layout import Layout
from gam_scale.model.lm import LanguageModel
from gam_scale.parallel.compilation import Compilation
from gam_scale.parallel.optimizer import GroupedOptimizer, states_of
from gam_scale.parallel.world import World


class Strategy(ABC):
    """Runs optimizer steps; subclasses implement the parts in which engines differ.

    The loop calls :meth:`backward` once per micro-batch, then :meth:`step`. Losses are sums over
    tokens; ``scale`` is one over the count of valid targets in the *global* batch, so the gradient
    after the last micro-batch is that of the global mean, the same for every split into ranks and
    micro-batches.
    """

    module: LanguageModel
    compilation: Compilation  # of the blocks
    optimizer: GroupedOptimizer
    world: World
    precision: str
    carry: Carry | None = None
    """The states that rows carry into the next batch, if any; saved and read with the weights."""

    def evaluate(self, batch: Batch) -> Tensor:
        """Return the loss sum of a batch (a scalar), without dropout and without gradients."""
        return self._forward(batch.tokens, batch.targets, batch.layout)

    def logits(self, tokens: Tensor, layout: Layout, at: Tensor | None = None) -> Tensor:
        """Return the logits (B, T, vocab_size), likewise; all ranks call this together.

        Args:
            tokens: this rank's part (B, T).
            layout: of the tokens.
            at: (N,) places among this rank's B T; only their logits (N, vocab_size) are returned.
        """
        return self._forward(tokens, None, layout, None, at)

    def _forward(self, *inputs: Tensor | Layout | None) -> Tensor:
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad(), self._autocast():
            output = self.module(*inputs)
        self.module.train(was_training)
        return output

    @abstractmethod
    def backward(self, batch: Batch, scale: float, *, last: bool) -> Tensor:
        """Run one micro-batch forward and backward; return its detached loss sum (a scalar).

        ``last`` marks the step's last micro-batch, after which gradients are those of all ranks.
        """

    def step(self, lr: float, max_norm: float) -> Tensor:
        """Clip the gradients, apply them at learning rate ``lr`` and clear them.

        Args:
            lr: the run's learning rate; each group uses it times its ``lr_multiplier``.
            max_norm: largest global L2 norm; 0: no clipping.

        Returns:
            The global norm before clipping, a scalar that is left on its device: nothing here waits
            for it. If it is not finite, neither the parameters nor the optimizer's state change, on
            any rank, since the norm is the same on all.
        """
        norm = self._clip(max_norm if max_norm > 0 else math.inf)
        skip_unless_finite(self.optimizer, norm)
        self._set_lr(lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def states(self) -> dict[str, StateSpec]:
        """All states that the optimizer keeps, by key, on whichever rank."""
        return states_of(self.optimizer.param_groups)

    @abstractmethod
    def shards(self) -> list[Shard]:
        """Return this rank's part of parameters and optimizer states, to be read or written.

        A shard is a view of the engine's memory, or a copy of what the engine keeps on a disk or
        once for several parameters.
        """

    def after_write(self, shards: list[Shard]) -> None:  # noqa: B027 (mostly nothing is to do)
        """Take in what was written to the shards; all ranks call this afterwards.

        Args:
            shards: as :meth:`shards` returned them.
        """

    def fill(self, values: Iterable[tuple[str, Tensor]]) -> None:
        """Set the parameters from whole values, of which this rank keeps its part.

        The optimizer's states become those of a new run.
        """
        shards, states = self.shards(), self.states
        parameters = {shard.name: shard for shard in shards if shard.kind == PARAM}
        for name, value in values:
            if name in parameters:
                parameters[name].write_from(value)
        for shard in shards:
            if shard.kind != PARAM:
                shard.data.fill_(states[shard.key].initial)
        self.after_write(shards)

    def _clip(self, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.module.parameters(), max_norm)

    def _autocast(self) -> torch.autocast:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_multiplier"]


def skip_unless_finite(optimizer: GroupedOptimizer, norm: Tensor) -> None:
    """Have the next ``step`` change nothing if ``norm`` is not finite, as tested on its device.

    Fused optimizers have a switch for this, meant for loss scaling: their kernels leave parameters
    and moments alone and take back the step's count. Other optimizers wait for the device.
    """
    optimizer.found_inf = norm.isfinite().logical_not_().float()
