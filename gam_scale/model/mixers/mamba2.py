"""The Mamba-2 block (arXiv 2405.21060): one decay per head and token, all else matrix products."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.kernels.choice import Function, HasKernels, Trial
from gam_scale.kernels.mamba2 import mamba_ssm_ssd
from gam_scale.kernels.products import Precision, product
from gam_scale.model.block import MixerBlock
from gam_scale.model.context import Context
from gam_scale.model.conv import CausalConv, check_taps
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.base import horizons_of
from gam_scale.model.memory.gate import MOST_RATE, exact, step_biases
from gam_scale.model.memory.pairs import pair_decays
from gam_scale.model.memory.recurrence import Chunks, Fold, chunk_states, state_of_rank
from gam_scale.model.parts import (
    FEED_FORWARDS,
    MIXERS,
    MixerConfig,
    Naming,
    part,
    recall_layers,
)
from gam_scale.model.policy import TO_RESIDUAL, Draw, Policy, ones, stacked
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.model.trial import LENGTH, ROWS, trial_layout, trial_numbers
from gam_scale.strict import option

CHUNK = 64
NORM_EPS = 1e-5


@MIXERS.register
@dataclass(frozen=True)
class Mamba2Layer(MixerConfig):
    """Mamba-2; the defaults are mamba_ssm's."""

    kind: Literal["mamba2"] = "mamba2"
    ffn: Any = part(FEED_FORWARDS, "none", "the feed-forward network; null: model.ffn")
    d_state: int = option(
        128, "state size per channel, which is the width of B and C", at_least=1, at_most=WIDEST
    )
    d_conv: int = option(4, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST)
    expand: int = option(2, "inner width as a multiple of d_model", at_least=1, at_most=1000)
    head_dim: int = option(
        64,
        "channels of a head, which share one decay; divides the inner width; a smaller inner width "
        "is one head",
        at_least=1,
        at_most=WIDEST,
    )
    n_groups: int = option(
        1,
        "groups of heads, each with its own B and C; divides the number of heads",
        at_least=1,
        at_most=WIDEST,
    )

    gpu_block_kind: ClassVar[str] = "mamba2"
    kernel: ClassVar[str] = "mamba_ssm"
    by_pieces: ClassVar[bool] = True
    computes_in_chunks: ClassVar[bool] = True
    counts_writes: ClassVar[bool] = True
    # As large a state as slot, raven and delta have in these tasks.
    recall: ClassVar[dict[str, tuple[str, ...]]] = recall_layers(
        {"kind": "mamba2", "d_state": 32}, {"kind": "mamba2", "d_state": 64}
    )
    small_settings: ClassVar[dict[str, Any]] = {"d_state": 4, "head_dim": 8, "n_groups": 2}

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Mamba-2"

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`MixerConfig.build`."""
        return Mamba2Block(self, shape)

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        inner, width = self.expand * shape.d_model, self.head_width(shape)
        n_heads = inner // width
        if inner % width:
            raise UserError(
                f"{name('head_dim')} is {self.head_dim}, which does not divide the inner width "
                f"{inner}, {name('expand')} times model.d_model; expected a divisor"
            )
        if n_heads % self.n_groups:
            raise UserError(
                f"{name('n_groups')} is {self.n_groups}, which does not divide the {n_heads} "
                "heads; expected a divisor"
            )

    def check_length(self, tokens: int, reason: str, name: Naming) -> None:
        """See :meth:`MixerConfig.check_length`."""
        check_taps(self.d_conv, name("d_conv"), tokens, reason)

    def head_width(self, shape: Shape) -> int:
        """See :meth:`MixerConfig.head_width`."""
        return min(self.head_dim, self.expand * shape.d_model)


class Mamba2Block(MixerBlock):
    """x + dropout(mixer(norm(x)))."""

    layer: Mamba2Layer

    def make_mixer(self, shape: Shape) -> nn.Module:
        """See :meth:`MixerBlock.make_mixer`."""
        return Mamba2Mixer(self.layer, shape)

    def mixer_statistics(self, h: Tensor, layout: Layout) -> dict[str, Tensor]:
        """See :meth:`Block.mixer_statistics`."""
        return self.mixer.statistics(h, layout)


def _log_rates(module: "Mamba2Mixer", value: Tensor, draw: Draw) -> None:
    """Draw the logarithms of rates that are uniform from 1 to 16."""
    value.uniform_(1.0, MOST_RATE, generator=draw.generator).log_()


def _log_uniform_steps(module: "Mamba2Mixer", value: Tensor, draw: Draw) -> None:
    step_biases(value, draw)


class Mamba2Mixer(HasKernels):
    """Causal convolution, then a state per head that decays by one factor per token; E = expand d.

        z, xBC, dt = Linear(input)                    d -> E, E + 2 G N, H
        x, B, C    = silu(conv(xBC))                  H heads of E / H channels; G groups of heads
        dt         = softplus(dt + dt_bias)
        y          = ssd(x, dt, A, B, C) + D x        A = -exp(A_log), one per head, like D
        output     = Linear(norm(y * silu(z)))

    The projected dt has the precision of the whole projection, bfloat16 under autocast, as in
    mamba_ssm. From its sum with the bias on, dt, A and the state are float32. Weight decay does not
    apply to the rates, dt_bias and D.
    """

    policy: ClassVar[dict[str, Policy]] = {
        "A_log": Policy(_log_rates, "vector", "never", "fp32"),
        "D": Policy(ones, "vector", "never", "fp32"),
        "dt_bias": Policy(_log_uniform_steps, "vector", "never", "fp32"),
    }

    def __init__(self, layer: Mamba2Layer, shape: Shape) -> None:
        super().__init__()
        inner = layer.expand * shape.d_model
        self.head_dim, self.d_state = layer.head_width(shape), layer.d_state
        self.n_heads, self.n_groups = inner // self.head_dim, layer.n_groups
        of_groups = self.n_groups * self.d_state
        self.parts = (inner, of_groups, of_groups)  # x, B, C
        convolved = sum(self.parts)
        self.splits = (inner, convolved, self.n_heads)
        weight = stacked(inner, *self.parts, self.n_heads)
        self.in_proj = Linear(shape.d_model, sum(self.splits), bias=False, weight=weight)
        self.conv = CausalConv(convolved, layer.d_conv, shape.biases)
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.norm = GatedNorm(inner, self.n_groups)
        self.out_proj = Linear(inner, shape.d_model, bias=False, weight=TO_RESIDUAL)

    def forward(self, h: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d); nothing crosses from one document to the next."""
        z, convolved, dt = self.in_proj(h).split(self.splits, dim=-1)
        convolved = self.conv(convolved, layout, context)
        state = self._nothing(h.shape[0], h.device, self.A_log.dtype)
        return self._read(z, convolved, dt, state, layout, context)[0]

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the convolution's last inputs, and h (B, H, E / H, N), float32 unless float64."""
        return {
            "conv": self.conv.init_state(batch_size, device, dtype),
            "h": self._nothing(batch_size, device, dtype),
        }

    def extend(
        self, h: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the next tokens (B, T, d) after ``state``; also return the new state."""
        z, convolved, dt = self.in_proj(h).split(self.splits, dim=-1)
        convolved, conv_state = self.conv.extend(convolved, state["conv"], layout)
        y, final = self._read(z, convolved, dt, state["h"], layout, None)
        return y, {"conv": conv_state, "h": final}

    def trials(self, context: int) -> list[Trial]:
        """See :meth:`HasKernels.trials`."""
        draw, heads, groups = trial_numbers(), self.n_heads, (self.n_groups, self.d_state)
        inputs = {
            "x": draw(ROWS, LENGTH, heads, self.head_dim),
            "dt": F.softplus(draw(ROWS, LENGTH, heads) - 3),
            "A": -torch.exp(draw(heads)),
            "B": draw(ROWS, LENGTH, *groups),
            "C": draw(ROWS, LENGTH, *groups),
            "initial": draw(ROWS, heads, self.head_dim, self.d_state),
        }
        forms: dict[str, Function] = {"mamba_ssm": ssd_in_kernels}
        return [Trial(ssd, forms, inputs, ("x", "B", "C"), trial_layout())]

    def statistics(self, h: Tensor, layout: Layout) -> dict[str, Tensor]:
        """Return statistics of tokens (B, T, d), the first of their rows: (values, heads) each.

        ``horizon``: over how many tokens like this one a head would forget. ``output_gate``: the
        gates that multiply a head's channels. ``state_norm``: the norm of a head's state after the
        tokens.
        """
        z, convolved, dt = self.in_proj(h).split(self.splits, dim=-1)
        rate = self._step_sizes(dt) * exact(self.A_log).exp()
        opened = F.silu(z).unflatten(-1, (self.n_heads, -1))
        nothing = self._nothing(h.shape[0], h.device, self.A_log.dtype)
        final = self._read(z, self.conv(convolved, layout), dt, nothing, layout, None)[1]
        return {
            "horizon": horizons_of(-rate),
            "output_gate": opened.movedim(2, -1).flatten(0, 2),
            "state_norm": final.flatten(2).norm(dim=-1),
        }

    def flops_per_token(self) -> float:
        """Count projections and convolution, at two FLOPs per weight, and the recurrence.

        Per number of the state: a decay, a write (2) and a read (2). Per channel: dt x and D x (3).
        """
        matmuls = 2.0 * (self.in_proj.weight.numel() + self.out_proj.weight.numel())
        inner = self.parts[0]
        return matmuls + self.conv.flops_per_token() + 5.0 * inner * self.d_state + 3.0 * inner

    def _nothing(self, rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        shape = (rows, self.n_heads, self.head_dim, self.d_state)
        dtype = torch.promote_types(dtype, torch.float32)
        return torch.zeros(shape, device=device, dtype=dtype)

    def _step_sizes(self, dt: Tensor) -> Tensor:
        """Return step sizes (..., H), from a sum in float32.

        A sum of -6.9 is a step of 0.001, and bfloat16 would be 1.5% off.
        """
        return F.softplus(exact(dt) + exact(self.dt_bias))

    def _read(
        self,
        z: Tensor,
        convolved: Tensor,
        dt: Tensor,
        state: Tensor,
        layout: Layout,
        context: Context | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the output (B, T, d) and the state after the tokens."""
        dtype = z.dtype
        with torch.autocast(z.device.type, enabled=False):
            x, B, C = F.silu(convolved).to(state.dtype).split(self.parts, dim=-1)
            x = x.unflatten(-1, (self.n_heads, self.head_dim))
            B, C = (v.unflatten(-1, (self.n_groups, self.d_state)) for v in (B, C))
            gates = self._step_sizes(dt), -torch.exp(exact(self.A_log))
            if self.implementation == "mamba_ssm":  # kernels multiply in the run's dtype
                inputs = x.to(dtype), *gates, B.to(dtype), C.to(dtype)
                y, final = ssd_in_kernels(*inputs, state, layout, context)
            else:
                y, final = ssd(x, *gates, B, C, state, layout, context, self.fp32_matmul)
            y = y.to(state.dtype) + exact(self.D).unsqueeze(-1) * x
            y = self.norm(y.flatten(2) * F.silu(z.to(y.dtype)))
        return self.out_proj(y.to(dtype)), final


class GatedNorm(nn.Module):
    """RMSNorm with a weight over each group of channels, applied after the gate."""

    policy: ClassVar[dict[str, Policy]] = {"weight": Policy(ones, "vector", "all")}

    def __init__(self, width: int, n_groups: int) -> None:
        super().__init__()
        self.n_groups = n_groups
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        groups = x.unflatten(-1, (self.n_groups, -1))
        normed = F.rms_norm(groups, groups.shape[-1:], eps=NORM_EPS)
        return normed.flatten(-2) * self.weight.to(x.dtype)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    layout: Layout,
    context: Context | None = None,
    precision: Precision = "ieee",
) -> tuple[Tensor, Tensor]:
    """Run the state space dual: per head, a matrix that decays by one factor per token.

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_tᵀ        y_t = h_t C_t

    Within a chunk, this is attention whose weights C_t B_s decay from s to t; between chunks, a
    fold. The heads of a group share B and C. Their channels stand side by side, so that one product
    writes to the states of them all, and one reads from them.

    Args:
        x: (B, T, H, P) inputs.
        dt: (B, T, H) step sizes, positive.
        A: (H,) decay rates, negative.
        B: (B, T, G, N) what each token writes with; G divides H.
        C: (B, T, G, N) what each token reads with.
        initial: (B, H, P, N) state before the first token.
        layout: the tokens' layout; a document starts from zero.
        context: the ranks over which the sequence is cut.
        precision: precision of float32 products.

    Returns:
        (B, T, H, P), and the state after the last token (B, H, P, N).
    """
    matmul = partial(product, precision=precision)
    (heads, width), groups = x.shape[2:], B.shape[2]
    each = heads // groups
    chunks = Chunks(layout, CHUNK)
    left, since_start, to_end = pair_decays(chunks.cut(dt * A), chunks)

    def of_channels(factor: Tensor) -> Tensor:
        """Repeat a head's factors for its channels: (B, H, n, C) -> (B, G, n, C, channels)."""
        factor = factor.unflatten(1, (groups, each)).movedim(2, -1).unsqueeze(-1)
        return factor.expand(*factor.shape[:-1], width).flatten(-2)

    x = x * dt.unsqueeze(-1)
    B, C = chunks.cut(B), chunks.cut(C)  # (B, G, n, C, N)
    scores = matmul(C, B.mT).unsqueeze(2) * left.unflatten(1, (groups, each))
    y = chunks.join(matmul(scores.flatten(1, 2), chunks.cut(x)))

    grouped = chunks.cut(x.unflatten(2, (groups, each)).flatten(-2))  # (B, G, n, C, channels)
    write = matmul((grouped * of_channels(to_end)).mT, B)  # (B, G, n, channels, N)
    decay = since_start[..., -1].unflatten(1, (groups, each)).mT.unsqueeze(-1)  # (B, G, n, each, 1)
    fold = Fold(decay, write.unflatten(-2, (each, width)).flatten(-2))
    before = initial.unflatten(1, (groups, each)).flatten(-2)
    states, final = chunk_states(fold, before, context)
    states = states.unflatten(-1, (width, -1)).flatten(3, 4)  # (B, G, n, channels, N)
    read = chunks.join(matmul(C, states.mT) * of_channels(since_start))
    return y + read.reshape(y.shape), final.unflatten(-1, (width, -1)).flatten(1, 2)


def ssd_in_kernels(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
    layout: Layout,
    context: Context | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :func:`ssd` in mamba_ssm's kernels; x, B and C come in the dtype of products.

    Over several ranks, a first pass from a zero state gives what this rank's tokens write. In the
    fold, a head's state is one row of numbers, with one decay.
    """
    if context is not None:
        nothing = torch.zeros_like(initial)
        _, write = mamba_ssm_ssd(x, dt, A, B, C, nothing, layout.documents)
        decay = torch.exp((dt * A).sum(1))
        if layout.starts is not None:
            decay = decay.masked_fill(layout.starts.any(1, keepdim=True), 0.0)
        fold = torch.cat([decay[..., None, None], write.flatten(-2).unsqueeze(-2)], dim=-1)
        before = state_of_rank(fold, initial.flatten(-2).unsqueeze(-2), context)
        initial = before.view_as(initial)
    return mamba_ssm_ssd(x, dt, A, B, C, initial, layout.documents)
