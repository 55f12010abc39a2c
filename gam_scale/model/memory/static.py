"""The paper's memory: a learned constant bank that every token reads for itself."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.context import Context
from gam_scale.model.layout import Layout
from gam_scale.model.linear import linear
from gam_scale.model.memory.base import Memory


class StaticMemory(Memory):
    """``softmax(h Mᵀ) M`` over a learned bank M (arXiv 2509.00605, section 3).

    No token sees another one here: only a block's convolution mixes tokens, so a stack of these
    has a receptive field of n_layers * (kernel_size - 1) + 1 tokens whatever the sequence length.
    """

    def __init__(self, d_model: int, n_slots: int) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.empty(n_slots, d_model))

    def init_parameter(self, name: str, generator: torch.Generator) -> bool:
        """Xavier-uniform, as the paper has it, in either initialisation scheme."""
        nn.init.xavier_uniform_(self.bank, generator=generator)
        return True

    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """Read the bank: (B, T, d) -> (B, T, d)."""
        weights = F.softmax(linear(h, self.bank), dim=-1)  # (B, T, n_slots)
        return linear(weights, self.bank.t())

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Nothing is remembered."""
        return {}

    def extend(
        self, h: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Memory.extend`."""
        return self(h, layout), state

    def flops_per_token(self) -> float:
        """Scores and read-out, one multiply-add per bank entry each."""
        return 4.0 * self.bank.numel()
