"""The interface of a gam block's memory, and the base of memories that the context writes."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from gam_scale.model.context import Context
from gam_scale.model.layout import Layout
from gam_scale.model.memory.gate import DecayGate

State = dict[str, Tensor]
"""What a memory remembers between tokens; the state of its recurrence is under "memory"."""


class Memory(nn.Module, ABC):
    """Maps (B, T, d) to what each token finds in the memory, (B, T, d)."""

    @abstractmethod
    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """Read the memory at every token of (B, T, d).

        Args:
            h: the block's normed input.
            layout: the tokens' layout; a memory starts anew where a document does.
            context: the ranks over which the sequences are cut.
        """

    @abstractmethod
    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return what the memory remembers before the first token."""

    @abstractmethod
    def extend(self, h: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
        """Read the memory at the next tokens (B, T, d); also return the state after them."""

    @abstractmethod
    def flops_per_token(self) -> float:
        """Return the forward FLOPs per token; a written memory counts those of its recurrence."""

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """Return statistics of tokens (B, T, d) that are worth watching, as (values, heads)."""
        return {}


class WrittenMemory(Memory):
    """A memory whose state the context writes: one form for training, prefill and generation.

    The state is float32, or float64 in a float64 model, whatever autocast says. ``gate`` decides
    how fast the state is forgotten; a memory whose decays do not depend on the text has none.
    """

    gate: DecayGate
    n_heads = 1

    @property
    def longest_horizon(self) -> float:
        """Tokens over which the slowest part of the state forgets at initialisation, 0 without a
        gate; see :attr:`DecayGate.longest_horizon`."""
        return self.gate.longest_horizon if hasattr(self, "gate") else 0.0

    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """See :meth:`Memory.forward`."""
        weight = next(self.parameters())
        state = self.init_state(h.shape[0], h.device, weight.dtype)
        return self.forward_from(h, state, layout, context)[0]

    def extend(self, h: Tensor, state: State, layout: Layout) -> tuple[Tensor, State]:
        """See :meth:`Memory.extend`."""
        return self.forward_from(h, state, layout, None)

    @abstractmethod
    def forward_from(
        self, h: Tensor, state: State, layout: Layout, context: Context | None
    ) -> tuple[Tensor, State]:
        """Return what the tokens read (B, T, d), and the state after them.

        With ``context``, ``state`` is that before the whole sequence: this rank's tokens continue
        those of the ranks before it.
        """

    def state_norm(self, h: Tensor, layout: Layout) -> Tensor:
        """Return the norm of each head's state, (B, heads), after rows' first tokens (B, T, d)."""
        state = self.init_state(h.shape[0], h.device, next(self.parameters()).dtype)
        final = self.extend(h, state, layout)[1]["memory"]
        return final.unflatten(1, (self.n_heads, -1)).flatten(2).norm(dim=-1)

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """Return ``horizon``: over how many tokens like this one a gate would forget."""
        if not hasattr(self, "gate"):
            return {}
        return {"horizon": horizons_of(self.gate(h).flatten(2).unflatten(2, (self.n_heads, -1)))}


def horizons_of(log_decay: Tensor) -> Tensor:
    """Convert log decays (B, T, heads, ...) to horizons in tokens, (values, heads)."""
    return -1 / log_decay.clamp(max=-1e-9).movedim(2, -1).flatten(0, -2)
