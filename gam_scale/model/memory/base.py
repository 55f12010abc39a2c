"""What a gam block asks of its memory, and what the written ones share."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gam_scale.kernels.choice import PORTABLE, HasKernels
from gam_scale.kernels.products import Precision
from gam_scale.model.context import Context
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.gate import DecayGate
from gam_scale.model.norm import unit_size
from gam_scale.model.policy import TO_RESIDUAL
from gam_scale.model.rotary import turn
from gam_scale.model.shape import Shape


class Memory(nn.Module, ABC):
    """Maps (B, T, d) to what each token finds in the memory, (B, T, d)."""

    @abstractmethod
    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """Read the memory at every token of (B, T, d).

        Args:
            h: the block's normed input.
            layout: of the tokens; memories begin anew where documents do.
            context: the ranks that the sequences are cut over.
        """

    @abstractmethod
    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """What it remembers before the first token."""

    @abstractmethod
    def extend(
        self, h: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The next tokens (B, T, d) after ``state``."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Forward FLOPs per token, a written memory's as its recurrence has them."""

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """What the memory decides of tokens (B, T, d), by name: (values, heads), to be watched."""
        return {}


class WrittenMemory(Memory):
    """A memory whose state the context writes: one form for training, prefill and generation.

    The state is float32, or float64 in a float64 model, whatever autocast says. ``gate`` says how
    fast it forgets.
    """

    gate: DecayGate
    n_heads = 1

    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """See :meth:`Memory.forward`."""
        weight = next(self.parameters())
        state = self.init_state(h.shape[0], h.device, weight.dtype)["memory"]
        return self.run(h, state, layout, context)[0]

    def extend(
        self, h: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Memory.extend`."""
        y, final = self.run(h, state["memory"], layout, None)
        return y, {"memory": final}

    @abstractmethod
    def run(
        self, h: Tensor, state: Tensor, layout: Layout, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        """What the tokens read (B, T, d), and the state after them."""

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """``horizon``: the tokens over which a gate would forget, if all were as this one."""
        log_decay = self.gate(h).flatten(2).unflatten(2, (self.n_heads, -1)).flatten(0, 1)
        return {"horizon": -1 / log_decay.clamp(max=-1e-9).movedim(1, -1).flatten(0, 1)}


class HeadMemory(HasKernels, WrittenMemory):
    """Queries, keys and values per head, a head's read-out brought to unit size, an output layer.

    The size of what a state gives depends on how much was written to it; only its direction is
    used, as in RetNet (arXiv 2307.08621).
    """

    fp32_matmul: Precision = "ieee"
    """Of products that are this memory's own; a run sets it before anything is compiled."""

    def __init__(self, n_heads: int, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        self.n_heads = n_heads
        self.head_size = d // self.n_heads
        self.qkv = Linear(d, 3 * d, bias=False)
        self.is_rotary = shape.rotary == "all"
        self.out = Linear(d, d, bias=False, weight=TO_RESIDUAL)

    def run(
        self, h: Tensor, state: Tensor, layout: Layout, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`WrittenMemory.run`."""
        qkv = self.qkv(h)
        with torch.autocast(h.device.type, enabled=False):
            q, k, v = qkv.to(state.dtype).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
            q, k = self.normed(q), self.normed(k)
            if self.is_rotary:
                q, k = (turn(x, *layout.turns[self.head_size]) for x in (q, k))
            if self.implementation != PORTABLE:  # products as all others of the run
                q, k, v = (x.to(qkv.dtype) for x in (q, k, v))
            y, final = self.associate(h, q, k, v, state, layout, context)
            y = unit_size(y.to(state.dtype)).flatten(2)
        return self.out(y.to(qkv.dtype)), final

    @abstractmethod
    def normed(self, x: Tensor) -> Tensor:
        """Queries or keys (B, T, H, K), brought to the size that the memory wants."""

    @abstractmethod
    def associate(
        self,
        h: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor,
        layout: Layout,
        context: Context | None,
    ) -> tuple[Tensor, Tensor]:
        """Write and read: (B, T, H, V), and the final state."""
