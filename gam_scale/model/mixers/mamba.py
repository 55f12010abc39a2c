"""The Mamba-1 block (arXiv 2312.00752)."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gam_scale.errors import UserError
from gam_scale.kernels.choice import Function, HasKernels, Trial
from gam_scale.kernels.mamba import mamba_ssm_scan
from gam_scale.model.block import MixerBlock
from gam_scale.model.context import Context
from gam_scale.model.conv import CausalConv, check_taps
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.gate import Gate, exact, step_biases
from gam_scale.model.memory.recurrence import Fold, state_before
from gam_scale.model.parts import FEED_FORWARDS, MIXERS, MixerConfig, Naming, part
from gam_scale.model.policy import MATRIX, TO_RESIDUAL, Draw, Policy, ones, stacked
from gam_scale.model.selective_scan import selective_scan
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.model.trial import LENGTH, ROWS, trial_layout, trial_numbers
from gam_scale.strict import option

_ScanInputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@MIXERS.register
@dataclass(frozen=True)
class MambaLayer(MixerConfig):
    """Mamba-1."""

    kind: Literal["mamba"] = "mamba"
    ffn: Any = part(FEED_FORWARDS, "none", "the feed-forward network; null: model.ffn")
    d_state: int = option(16, "state size per channel", at_least=1, at_most=WIDEST)
    d_conv: int = option(4, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST)
    expand: int = option(3, "inner width as a multiple of d_model", at_least=1, at_most=1000)
    stack: Literal["residual", "paper"] = option(
        "residual",
        "residual: pre-norm residual blocks, as Mamba is used; paper: bare blocks without residual "
        "connection or norm, as in the published baseline of the GAM paper",
    )

    gpu_block_kind: ClassVar[str] = "mamba"
    sections: ClassVar[tuple[str, ...]] = ("mamba",)
    plan_note: ClassVar[str] = (
        "time leaves out what Mamba's portable scan moves and launches inside"
    )
    kernel: ClassVar[str] = "mamba_ssm"
    recall: ClassVar[dict[str, tuple[str, ...]]] = {"zoology": ("model.mamba.d_state=32",)}
    small_settings: ClassVar[dict[str, Any]] = {"d_state": 4, "expand": 2}

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Mamba"

    @property
    def is_residual(self) -> bool:
        """See :attr:`MixerConfig.is_residual`."""
        return self.stack == "residual"

    def build(self, shape: Shape) -> nn.Module:
        """See :meth:`MixerConfig.build`."""
        return MambaBlock(self, shape)

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        if not self.is_residual and self.ffn.kind != "none":
            raise UserError(
                f"{name('stack')} is paper, a bare block, with a feed-forward network of kind "
                f"{self.ffn.kind}; expected ffn none, or stack residual"
            )

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`."""
        if not self.is_residual and self.norm is not None:
            raise UserError(
                f"{name('norm')} is given with stack paper, a bare block without norms; expected "
                "norm null, or stack residual"
            )

    def check_length(self, tokens: int, reason: str, name: Naming) -> None:
        """See :meth:`MixerConfig.check_length`."""
        check_taps(self.d_conv, name("d_conv"), tokens, reason)


class MambaBlock(MixerBlock):
    """A Mamba-1 mixer and, around it, what ``stack`` selects.

    residual: x + dropout(mixer(LayerNorm(x))), as Mamba is used; paper: the bare mixer, without
    norm, residual connection or dropout.
    """

    layer: MambaLayer

    def make_mixer(self, shape: Shape) -> nn.Module:
        """See :meth:`MixerBlock.make_mixer`."""
        return MambaMixer(self.layer, shape)


def _minus_real_rates(module: "MambaMixer", value: Tensor, draw: Draw) -> None:
    """Fill A_log by the real S4D initialisation, A = -(1, 2, ..., N) in every channel."""
    rates = torch.arange(1, value.shape[1] + 1, dtype=torch.float64)
    value.copy_(rates.log().expand_as(value))


class MambaMixer(HasKernels):
    """Causal convolution, then a selective scan, both on E = expand * d_model gated channels.

        x, z     = Linear(input)                      d -> 2E
        x        = silu(conv(x))
        dt, B, C = Linear(x)                          E -> dt_rank + 2N, then dt = softplus(Linear)
        output   = Linear(scan(x, dt, B, C) * silu(z))

    The scan may run in mamba_ssm's kernel, which takes no initial state: sequences over several
    ranks use the portable scan.
    """

    policy: ClassVar[dict[str, Policy]] = {
        # Rates, a matrix in shape only.
        "A_log": Policy(_minus_real_rates, "vector", "all", "fp32"),
        "D": Policy(ones, "vector", "all", "fp32"),
    }

    def __init__(self, layer: MambaLayer, shape: Shape) -> None:
        super().__init__()
        d_model, d_state = shape.d_model, layer.d_state
        inner, dt_rank = layer.expand * d_model, math.ceil(d_model / 16)
        self.splits = (dt_rank, d_state, d_state)
        self.in_proj = Linear(d_model, 2 * inner, bias=False, weight=stacked(inner, inner))
        self.conv = CausalConv(inner, layer.d_conv, shape.biases)
        self.x_proj = Linear(inner, sum(self.splits), bias=False, weight=stacked(*self.splits))
        self.dt_proj = StepSize(dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))  # A = -exp(A_log)
        self.D = nn.Parameter(torch.empty(inner))
        weight = TO_RESIDUAL if layer.is_residual else MATRIX
        self.out_proj = Linear(inner, d_model, bias=False, weight=weight)

    def forward(self, x: Tensor, layout: Layout, context: Context | None = None) -> Tensor:
        """(B, T, d) -> (B, T, d); nothing crosses from one document to the next."""
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, T, E) each
        inputs = self._scan_inputs(F.silu(self.conv(x, layout, context)))
        if context is None and self.implementation == "mamba_ssm":
            y = mamba_ssm_scan(*inputs, layout.starts)
        elif context is None:
            y = selective_scan(*inputs, layout.starts, fused=self.fused)[0]
        else:
            initial = _state_before(*inputs, layout, context)
            y = selective_scan(*inputs, layout.starts, initial, fused=self.fused)[0]
        return self.out_proj(y * F.silu(z))

    def init_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Return the convolution's last inputs and h (B, E, N), float32 unless float64."""
        h_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return {
            "conv": self.conv.init_state(batch_size, device, dtype),
            "h": torch.zeros((batch_size, *self.A_log.shape), device=device, dtype=h_dtype),
        }

    def extend(
        self, x: Tensor, state: dict[str, Tensor], layout: Layout
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Map the next tokens (B, T, d) after ``state``; also return the new state."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv_state = self.conv.extend(x, state["conv"], layout)
        y, h = selective_scan(*self._scan_inputs(F.silu(x)), layout.starts, state["h"])
        return self.out_proj(y * F.silu(z)), {"conv": conv_state, "h": h}

    def trials(self, context: int) -> list[Trial]:
        """See :meth:`HasKernels.trials`."""
        if context > 1:
            return []
        draw, (width, states) = trial_numbers(), self.A_log.shape
        inputs = {
            "x": draw(ROWS, LENGTH, width),
            "dt": F.softplus(draw(ROWS, LENGTH, width) - 3),
            "A": -torch.exp(draw(width, states)),
            "B": draw(ROWS, LENGTH, states),
            "C": draw(ROWS, LENGTH, states),
            "D": draw(width),
        }
        forms: dict[str, Function] = {"mamba_ssm": _scanned_in_kernel}
        return [Trial(_scanned, forms, inputs, (), trial_layout())]

    def _scan_inputs(self, x: Tensor) -> _ScanInputs:
        """Return x, dt, A, B, C, D of :func:`selective_scan`."""
        dt, B, C = self.x_proj(x).split(self.splits, dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        return x, dt, -torch.exp(exact(self.A_log)), B, C, self.D

    def flops_per_token(self) -> float:
        """Count projections and convolution, at two FLOPs per weight, and the scan.

        The scan takes 7 per channel and state: dt A, exp, times h, (dt x) B, the sum, and two for
        the product with C; and 3 per channel: dt x, D x and its sum.
        """
        projections = (self.in_proj, self.x_proj, self.dt_proj, self.out_proj)
        scan = 7.0 * self.A_log.numel() + 3.0 * self.D.numel()
        matmuls = 2.0 * sum(p.weight.numel() for p in projections)
        return matmuls + self.conv.flops_per_token() + scan


def _small_weight(module: "StepSize", value: Tensor, draw: Draw) -> None:
    """Draw uniformly within +-dt_rank^-1/2."""
    bound = module.in_features**-0.5
    nn.init.uniform_(value, -bound, bound, generator=draw.generator)


def _log_uniform_steps(module: "StepSize", value: Tensor, draw: Draw) -> None:
    """Draw biases whose softplus is log-uniform."""
    step_biases(value, draw)


class StepSize(Gate):
    """The projection whose softplus is the step sizes, (..., dt_rank) -> (..., E).

    Small steps need a gate's float32: an output of -6.9 is a step of 0.001, and bfloat16 would be
    1.5% off.
    """

    policy: dict[str, Policy] = {
        "weight": Policy(_small_weight, "gate", "all", "fp32"),
        "bias": Policy(_log_uniform_steps, "vector", "all", "fp32"),
    }


def _scanned(*arguments: Any) -> tuple[Tensor]:
    """Run the portable scan on x, dt, A, B, C, D and a layout with documents."""
    x, dt, A, B, C, D, layout = arguments
    return (selective_scan(x, dt, A, B, C, D, layout.starts)[0],)


def _scanned_in_kernel(*arguments: Any) -> tuple[Tensor]:
    """Run the same scan in mamba_ssm's kernel."""
    x, dt, A, B, C, D, layout = arguments
    return (mamba_ssm_scan(x, dt, A, B, C, D, layout.starts),)


def _state_before(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    layout: Layout,
    context: Context,
) -> Tensor:
    """Return the state after the ranks before this one, (B, E, N), from one fold of each rank.

    A scan from zero gives this rank's write. Its outputs are thrown away, so a sequence over
    several ranks is scanned twice, which will do for a baseline.
    """
    write = selective_scan(x, dt, A, B, C, D, layout.starts)[1]
    decay = torch.exp(dt.to(write.dtype).sum(1).unsqueeze(-1) * A)
    if layout.starts is not None:  # after exp: an infinite step gives A a gradient of inf * 0
        decay = decay.masked_fill(layout.starts.any(1).view(-1, 1, 1), 0.0)
    # Each number of a state is a row of it: (ranks, 2, B, E N, 1).
    folds = context.gather(torch.stack([decay, write]).flatten(-2).unsqueeze(-1))
    nothing = torch.zeros_like(folds[0, 0])
    return state_before(Fold(*folds.unbind(1)), nothing, context).view_as(write)
