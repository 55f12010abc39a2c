"""The seam between the training loop and whatever engine runs the step."""

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
    """One optimizer step, cut where engines differ.

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
    """What its batches' rows left behind, where they go on; saved and read with its weights."""

    def evaluate(self, batch: Batch) -> Tensor:
        """The loss sum of a batch (a scalar), without dropout and without gradients."""
        return self._forward(batch.tokens, batch.targets, batch.layout)

    def logits(self, tokens: Tensor, layout: Layout, at: Tensor | None = None) -> Tensor:
        """(B, T, vocab_size) of tokens (B, T), likewise; called by all ranks together.

        Args:
            tokens: this rank's part.
            layout: of them.
            at: (N,) the places, of this rank's B T, whose logits (N, vocab_size) alone are wanted.
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
        """Forward and backward of one micro-batch; returns its detached loss sum (a scalar).

        ``last`` marks the step's last micro-batch, after which gradients are those of all ranks.
        """

    def step(self, lr: float, max_norm: float) -> Tensor:
        """Clip the gradients, apply them at learning rate ``lr``, clear them; returns their norm.

        Args:
            lr: of the run; each group has it times its ``lr_multiplier``.
            max_norm: largest global L2 norm; 0: no clipping.

        Returns:
            The global norm before clipping, a scalar that is left on its device: nothing here waits
            for it. If it is not finite, nothing is applied, neither to parameters nor to the
            optimizer's state: the same on all ranks, since the norm is that of all.
        """
        norm = self._clip(max_norm if max_norm > 0 else math.inf)
        skip_unless_finite(self.optimizer, norm)
        self._set_lr(lr)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def states(self) -> dict[str, StateSpec]:
        """By key, all that the optimizer keeps, on whichever rank."""
        return states_of(self.optimizer.param_groups)

    @abstractmethod
    def shards(self) -> list[Shard]:
        """This rank's part of the parameters and the optimizer's states, to be read or written.

        Views of the engine's memory, or copies of what it keeps on a disk or for several at once.
        """

    def written(self, shards: list[Shard]) -> None:  # noqa: B027 (mostly nothing is to do)
        """To be called by all ranks after what :meth:`shards` returned was written to.

        Args:
            shards: as returned.
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
        self.written(shards)

    def _clip(self, max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(self.module.parameters(), max_norm)

    def _autocast(self) -> torch.autocast:
        bf16 = self.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=bf16)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_multiplier"]


def skip_unless_finite(optimizer: GroupedOptimizer, norm: Tensor) -> None:
    """Have the next ``step`` change nothing if ``norm`` is not finite, as found on its device.

    Fused optimizers have a switch for it, meant for loss scaling: their kernels leave parameters
    and moments alone, and the count of steps takes back its 1. Others wait for the device.
    """
    optimizer.found_inf = norm.isfinite().logical_not_().float()
