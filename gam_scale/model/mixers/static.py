"""The paper's memory: a learned constant bank that every token reads for itself."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.model.context import Context
from gam_scale.model.gam import GAMLayer
from gam_scale.model.layout import Layout
from gam_scale.model.linear import linear
from gam_scale.model.memory.base import Memory
from gam_scale.model.parts import MIXERS
from gam_scale.model.policy import Draw, Policy
from gam_scale.model.shape import LONGEST, Shape
from gam_scale.strict import option


@MIXERS.register
@dataclass(frozen=True)
class StaticLayer(GAMLayer):
    """The paper's layer: a constant bank."""

    kind: Literal["static"] = "static"
    n_slots: int = option(512, "rows of each layer's memory bank", at_least=1, at_most=LONGEST)

    gpu_block_kind: ClassVar[str] = "static"
    sections: ClassVar[tuple[str, ...]] = ("gam",)
    small_settings: ClassVar[dict[str, Any]] = {"n_slots": 6}

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Gated associative memory"

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return StaticMemory(shape.d_model, self.n_slots)


def _xavier(module: "StaticMemory", value: Tensor, draw: Draw) -> None:
    """Draw Xavier-uniform, as in the paper, in either initialisation scheme."""
    nn.init.xavier_uniform_(value, generator=draw.generator)


class StaticMemory(Memory):
    """``softmax(h Mᵀ) M`` over a learned bank M (arXiv 2509.00605, section 3).

    No token sees another one here: only a block's convolution mixes tokens, so a stack of these
    has a receptive field of n_layers * (kernel_size - 1) + 1 tokens whatever the sequence length.
    """

    policy: ClassVar[dict[str, Policy]] = {"bank": Policy(_xavier, "matrix", "always")}

    def __init__(self, d_model: int, n_slots: int) -> None:
        super().__init__()
        self.bank = nn.Parameter(torch.empty(n_slots, d_model))

    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """Read the bank: (B, T, d) -> (B, T, d)."""
        weights = F.softmax(linear(h, self.bank), dim=-1)  # (B, T, n_slots)
        return linear(weights, self.bank.t())

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return an empty state: nothing is remembered."""
        return {}

    def extend(
        self, h: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See :meth:`Memory.extend`."""
        return self(h, layout), state

    def flops_per_token(self) -> float:
        """Count scores and read-out, one multiply-add per bank entry each."""
        return 4.0 * self.bank.numel()
