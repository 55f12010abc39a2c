"""A gated average per channel: GSPN-2's row-stochastic propagation in one dimension."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gam_scale.model.context import Context
from gam_scale.model.conv import CausalConv
from gam_scale.model.gam import WrittenLayer
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.base import Memory, State, WrittenMemory
from gam_scale.model.memory.gate import DecayGate
from gam_scale.model.memory.recurrence import Chunks, Fold, chunk_states, linear_scan
from gam_scale.model.norm import SIZE_FLOOR
from gam_scale.model.norms.rmsnorm import RMSNorm
from gam_scale.model.parts import MIXERS
from gam_scale.model.policy import TO_RESIDUAL, stacked
from gam_scale.model.shape import Shape
from gam_scale.strict import option

CHUNK = 256
"""Near the root of a long sequence's length, to balance the two scans, of C and T / C steps."""


@MIXERS.register
@dataclass(frozen=True)
class ScanLayer(WrittenLayer):
    """A gated average per channel."""

    kind: Literal["scan"] = "scan"
    output_norm: bool = option(
        False, "normalise the read-out (RMSNorm with a weight) before its gate"
    )

    gpu_block_kind: ClassVar[str] = "scan"

    @property
    def gates_output(self) -> bool:
        """See :attr:`GAMLayer.gates_output`: always."""
        return True

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return ScanMemory(self, shape)


class ScanMemory(WrittenMemory):
    """A gated average of each channel, and a gate on what is read; see :func:`scan_memory`.

        x, z = act(conv(W_x h)), W_z h
        y    = W_o (norm(average(x)) * SiLU(z))

    The convolution, the activation and the norm, an RMSNorm with a weight, are settings.
    """

    def __init__(self, layer: ScanLayer, shape: Shape) -> None:
        super().__init__()
        d = shape.d_model
        # The rows of what is averaged, then those of the gate on reading.
        self.value = Linear(d, 2 * d, bias=False, weight=stacked(d, d))
        self.gate = DecayGate(d, d, layer.horizons(shape))
        self.out = Linear(d, d, bias=False, weight=TO_RESIDUAL)
        self.conv = CausalConv(d, layer.conv_size, bias=False) if layer.conv_size else None
        self.activation = layer.activation
        self.norm = RMSNorm(d, SIZE_FLOOR) if layer.output_norm else None

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return a state of zeros, (B, d), and the convolution's last inputs."""
        dtype = torch.promote_types(dtype, torch.float32)
        width = self.out.in_features
        state = {"memory": torch.zeros(batch_size, width, device=device, dtype=dtype)}
        if self.conv is not None:
            state["value"] = self.conv.init_state(batch_size, device, dtype)
        return state

    def forward_from(
        self, h: Tensor, state: State, layout: Layout, context: Context | None
    ) -> tuple[Tensor, State]:
        """See :meth:`WrittenMemory.forward_from`."""
        before, after = state["memory"], {}
        x, z = self.value(h).chunk(2, dim=-1)
        with torch.autocast(h.device.type, enabled=False):
            x = x.to(before.dtype)
            if self.conv is not None:
                x, after["value"] = self.conv.forward_from(x, state["value"], layout, context)
            if self.activation == "silu":
                x = F.silu(x)
            log_decay = self.gate(h).squeeze(-2)
            y, after["memory"] = scan_memory(x, log_decay, before, layout, context)
            if self.norm is not None:
                y = self.norm(y)
        return self.out(y.to(z.dtype) * F.silu(z)), after

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """See :meth:`Memory.statistics`; ``output_gate`` multiplies what is read."""
        opened = F.silu(self.value(h).chunk(2, dim=-1)[1])
        return super().statistics(h) | {"output_gate": opened.reshape(-1, 1)}

    def flops_per_token(self) -> float:
        """Count projections, convolutions and, per channel, decay, share, write (2) and gate."""
        linears = (self.value, self.out, self.gate.strength)
        conv = self.conv.flops_per_token() if self.conv is not None else 0.0
        return sum(2.0 * p.weight.numel() for p in linears) + conv + 5.0 * self.out.in_features


def scan_memory(
    x: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    layout: Layout,
    context: Context | None = None,
) -> tuple[Tensor, Tensor]:
    """Average each channel over the past:

        h_t = a_t h_{t-1} + (1 - a_t) x_t

    with a_t = exp(log_decay_t). This is the propagation of arXiv 2512.07884, in which the weights
    on what a position receives sum to one, along a line instead of over an image.

    Args:
        x: (B, T, D).
        log_decay: (B, T, D), at most 0.
        initial: (B, D) before the first token.
        layout: the tokens' layout; a document starts from zero.
        context: the ranks over which the sequence is cut.

    Returns:
        All h (B, T, D), and the last one (B, D).
    """
    chunks = Chunks(layout, CHUNK)
    x, log_decay = (chunks.cut(y.unsqueeze(2)) for y in (x, log_decay))  # (B, 1, N, C, D)
    carried = chunks.carried.unsqueeze(-1)
    decay = torch.exp(log_decay)
    within = decay if chunks.starts is None else decay * ~chunks.starts.unsqueeze(-1)
    rows, channels = x.shape[0], x.shape[-1]
    # In both scans, each row of the state is a channel. The first walks all chunks side by side.
    share = -torch.expm1(log_decay)
    within, write = (y.flatten(0, 2)[:, None, :, :, None] for y in (within, share * x))
    h = linear_scan(within, write, torch.zeros_like(write[:, :, 0]))[:, 0, 1:, :, 0]
    h = h.unflatten(0, (rows, 1, -1))  # (B, 1, N, C, D), from zero at each chunk's start
    since_start = torch.exp(log_decay.cumsum(-2)) * carried
    folds = Fold(since_start[..., -1, :, None], h[..., -1, :, None])
    states, final = chunk_states(folds, initial.view(rows, 1, channels, 1), context)
    h = h + since_start * states.mT
    return chunks.join(h).flatten(2), final.view(rows, channels)
