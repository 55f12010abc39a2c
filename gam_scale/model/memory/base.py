"""What a gam block asks of its memory, and what the written ones share."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gam_scale.model.context import Context
from gam_scale.model.layout import Layout
from gam_scale.model.memory.gate import DecayGate

State = dict[str, Tensor]
"""What a memory remembers between tokens; under "memory" what its recurrence holds."""


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
    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """What it remembers before the first token."""

    @abstractmethod
    def extend(self, h: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
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

    @property
    def longest_horizon(self) -> float:
        """Tokens over which the slowest part of the state forgets at initialisation; see
        :attr:`DecayGate.longest_horizon`."""
        return self.gate.longest_horizon

    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """See :meth:`Memory.forward`."""
        weight = next(self.parameters())
        state = self.init_state(h.shape[0], h.device, weight.dtype)
        return self.run(h, state, layout, context)[0]

    def extend(self, h: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
        """See :meth:`Memory.extend`."""
        return self.run(h, state, layout, None)

    @abstractmethod
    def run(
        self, h: Tensor, state: State, layout: Layout, context: Context | None
    ) -> tuple[Tensor, State]:
        """What the tokens read (B, T, d), and the state after them.

        With ``context``, of a sequence that begins with ``state``: this rank's tokens go on from
        those of the ranks before.
        """

    def state_norm(self, h: Tensor, layout: Layout) -> Tensor:
        """(B, heads), the length of each head's state after the first tokens (B, T, d) of rows."""
        state = self.init_state(h.shape[0], h.device, next(self.parameters()).dtype)
        final = self.extend(h, state, layout)[1]["memory"]
        return final.unflatten(1, (self.n_heads, -1)).flatten(2).norm(dim=-1)

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """``horizon``: the tokens over which a gate would forget, if all were as this one."""
        return {"horizon": horizons_of(self.gate(h).flatten(2).unflatten(2, (self.n_heads, -1)))}


def horizons_of(log_decay: Tensor) -> Tensor:
    """In tokens, of log decays of (B, T, heads, ...): (values, heads)."""
    return -1 / log_decay.clamp(max=-1e-9).movedim(2, -1).flatten(0, -2)
