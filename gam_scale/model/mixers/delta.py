"""A memory that the gated delta rule writes, in which a new value replaces a key's old one."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gam_scale.errors import UserError
from gam_scale.kernels.choice import Function, Trial
from gam_scale.model.context import Context
from gam_scale.model.gam import DecayLayer
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.base import Memory, horizons_of
from gam_scale.model.memory.channel_gate import ChannelDecayGate
from gam_scale.model.memory.delta_rule import delta_in_kernels, delta_memory
from gam_scale.model.memory.gate import DecayGate, Gate, exact
from gam_scale.model.memory.heads import HeadMemory, Heads
from gam_scale.model.memory.pairs import MIN_LOG_DECAY
from gam_scale.model.norm import unit_length
from gam_scale.model.parts import MIXERS, Naming
from gam_scale.model.policy import MATRIX
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.model.trial import LENGTH, ROWS, trial_layout, trial_numbers
from gam_scale.strict import option, shown


@dataclass(frozen=True)
class DeltaRuleLayer(DecayLayer):
    """The settings of all kinds that are the gated delta rule."""

    head_dim: int = option(
        0,
        "channels of a head's queries and keys; 0: d_model / n_heads",
        at_least=0,
        at_most=WIDEST,
    )
    expand_v: float = option(
        1.0,
        "channels of a head's values, as a multiple of the channels of its keys",
        above=0,
        at_most=100,
    )
    n_value_heads: int = option(
        0,
        "heads of values, each with its own state, a multiple of n_heads; equally many share each "
        "head of queries and keys; 0: n_heads",
        at_least=0,
        at_most=WIDEST,
    )
    max_beta: Literal[1, 2] = option(
        1,
        "largest writing strength (with strength_per channel, of erasing alone); 2 lets a token "
        "reverse the sign of what is stored under its key, which counting and state tracking need "
        "(arXiv 2411.12537)",
    )
    decay_per: Literal["head", "channel"] = option(
        "head",
        "head: one decay for each head; channel: one for each channel of its keys, from a "
        "projection whose rank is the width of a head's values; heads that share keys then share "
        "decays and strengths (arXiv 2510.26692)",
    )
    strength_per: Literal["head", "channel"] = option(
        "head",
        "head: one writing strength for each head; channel: a gate on each channel of the key that "
        "is erased and on each channel of the value that is written (arXiv 2605.22791)",
    )
    strength_bias: bool = option(
        True, "whether strengths per head have a bias; in published layers they have none"
    )
    decay_gates: bool = option(
        False,
        "whether weight decay applies to the matrices of decays and strengths, as in published "
        "layers; rates and biases never decay",
    )
    output_gate_rank: Literal["full", "head"] = option(
        "full",
        "rank of the output gate's matrix; head: the width of a head's values, with a bias after "
        "it",
    )

    gpu_block_kind: ClassVar[str] = "delta"
    kernel: ClassVar[str] = "fla"
    keys_share: ClassVar[float] = 1.0
    """The width of all heads' keys together, as a share of d_model, where head_dim is 0."""

    def build_memory(self, shape: Shape) -> Memory:
        """See :meth:`GAMLayer.build_memory`."""
        return DeltaMemory(self, shape)

    def heads(self, shape: Shape) -> Heads:
        """See :meth:`HeadLayer.heads`."""
        key = self.head_dim or self._usual_width(shape)
        values = self.n_value_heads or self.n_heads
        value = round(key * self.expand_v)
        rank = value if self.output_gate_rank == "head" else 0
        around = (self.conv_size, self.activation, self.output_gate, rank)
        return Heads(self.n_heads, key, value, values, *around)

    def check_widths(self, shape: Shape, name: Naming) -> None:
        """See :meth:`HeadLayer.check_widths`."""
        if not self.head_dim and self.keys_share == 1:
            super().check_widths(shape, name)
        elif shape.rotary == "all" and self.head_dim % 2:
            raise UserError(
                f"{name('head_dim')} is {self.head_dim}; expected an even number for rotary "
                "positions"
            )
        heads = self.heads(shape)
        if heads.n_value_heads % self.n_heads:
            raise UserError(
                f"{name('n_value_heads')} is {self.n_value_heads}, which is no multiple of n_heads "
                f"{self.n_heads}; expected a multiple, or 0 for as many"
            )
        if abs(heads.value_width - heads.key_width * self.expand_v) > 1e-6:
            raise UserError(
                f"{name('expand_v')} is {self.expand_v:g} with keys of {heads.key_width} channels; "
                "expected a multiple that gives a whole number of channels"
            )

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`."""
        super().check_own(name)
        usual = type(self)  # a kind's defaults are not refused, only what the user sets
        if self.strength_per == "channel" and self.strength_bias != usual.strength_bias:
            raise UserError(
                f"{name('strength_bias')} is {shown(self.strength_bias)} with strength_per "
                "channel, whose gates have none; expected strength_per head, or no strength_bias"
            )
        is_set = self.output_gate_rank != usual.output_gate_rank
        if is_set and self.output_gate_rank == "head" and self.output_gate == "none":
            raise UserError(
                f"{name('output_gate_rank')} is head with output_gate none; expected output_gate "
                "silu or sigmoid, or output_gate_rank full"
            )

    def _usual_width(self, shape: Shape) -> int:
        """Return the default width of a head's keys, an even number with rotary positions."""
        step = 2 if shape.rotary == "all" else 1
        return max(1, round(self.keys_share * shape.d_model / self.n_heads / step)) * step


@MIXERS.register
@dataclass(frozen=True)
class DeltaLayer(DeltaRuleLayer):
    """The gated delta rule."""

    kind: Literal["delta"] = "delta"


class DeltaMemory(HeadMemory):
    """A matrix of associations per head, corrected by each token; see :func:`delta_memory`.

    With an output gate, queries are scaled by K^-1/2, as in published layers: the floor of the
    gate's norm makes the scale matter. Without one they have length 1: the norm undoes any scale.
    """

    def __init__(self, layer: DeltaRuleLayer, shape: Shape) -> None:
        super().__init__(layer.heads(shape), shape)
        d, heads, decays = shape.d_model, self.heads, layer.decay_gates
        by_channel, horizons = layer.decay_per == "channel", layer.horizons(shape)
        if by_channel:
            sizes = (heads.n_key_heads, heads.key_width, heads.value_width)
            self.gate: DecayGate = ChannelDecayGate(d, *sizes, horizons, decays=decays)
        else:
            self.gate = DecayGate(d, self.n_heads, horizons, decays=decays)
        if layer.decay_start == "published":
            self.gate.begin_as_published(least_rate=float(by_channel))
        self.beta = self.erase = self.write = None
        if layer.strength_per == "channel":
            # As wide as keys and values are: float32 products would cost more than all others.
            weight = replace(MATRIX, role="gate", decay="always" if decays else "never")
            self.erase = Linear(d, heads.n_key_heads * heads.key_width, bias=False, weight=weight)
            values = heads.n_value_heads * heads.value_width
            self.write = Linear(d, values, bias=False, weight=weight)
        else:
            count = heads.n_key_heads if by_channel else heads.n_value_heads
            self.beta = Gate(d, count, layer.strength_bias, decays=decays)
        self.max_beta = layer.max_beta

    def initial(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Return a state of zeros, (B, H, K, V)."""
        shape = (batch_size, self.n_heads, self.heads.key_width, self.heads.value_width)
        return torch.zeros(shape, device=device, dtype=dtype)

    def norm_heads(self, x: Tensor) -> Tensor:
        """Scale to length 1: a longer key would overshoot where it is written twice."""
        return unit_length(x)

    def gates(self, h: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`HeadMemory.gates`: log decays, and strengths."""
        return self._log_decays(h), self._strengths(h)

    def associate(
        self,
        gates: tuple[Tensor, ...],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor,
        layout: Layout,
        context: Context | None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`HeadMemory.associate`."""
        if self.output_gate is not None:
            q = q * self.heads.key_width**-0.5
        q, k = self._shared(q), self._shared(k)
        log_decay, strengths = gates
        arguments = (q, k, v, log_decay, strengths, state, layout, context)
        if self.implementation == "fla":
            return delta_in_kernels(*arguments)
        return delta_memory(*arguments, self.fp32_matmul)

    def _shared(self, x: Tensor) -> Tensor:
        """Expand (B, T, H, ...) to the heads of values, where H is the number of heads of keys."""
        each = self.n_heads // x.shape[2]
        return x if each == 1 else x.repeat_interleave(each, dim=2)

    def _log_decays(self, h: Tensor) -> Tensor:
        """Return log decays of each head (B, T, H), or of each channel of its keys (B, T, H, K)."""
        log_decay = self.gate(h)
        if isinstance(self.gate, ChannelDecayGate):
            return self._shared(log_decay)
        return log_decay.squeeze(-2)

    def _strengths(self, h: Tensor) -> Tensor:
        """Return how much of its value a token writes, (B, T, H), or how much it erases of each
        channel of its key and writes of each channel of its value, (B, T, H, K + V)."""
        if self.beta is not None:
            return self._shared(self._scaled(torch.sigmoid(self.beta(h))))
        assert self.erase is not None and self.write is not None
        heads = self.heads
        keys = (heads.n_key_heads, heads.key_width)
        values = (heads.n_value_heads, heads.value_width)
        erased = torch.sigmoid(exact(self.erase(h))).unflatten(-1, keys)
        written = torch.sigmoid(exact(self.write(h))).unflatten(-1, values)
        return torch.cat([self._shared(self._scaled(erased)), written], dim=-1)

    def _scaled(self, strengths: Tensor) -> Tensor:
        return strengths if self.max_beta == 1 else self.max_beta * strengths

    def trials(self, context: int) -> list[Trial]:
        """See :meth:`HasKernels.trials`; several ranks add one of their folds' wider values."""
        key, value = self.heads.key_width, self.heads.value_width
        widths = [value] + [key + value] * (context > 1)
        return [self._trial(width) for width in widths]

    def _trial(self, width: int) -> Trial:
        draw, heads = trial_numbers(), (ROWS, LENGTH, self.n_heads)
        decays = (self.heads.key_width,) * isinstance(self.gate, ChannelDecayGate)
        strengths = (self.heads.key_width + width,) * (self.beta is None)
        inputs = {
            "q": self.norm_heads(draw(*heads, self.heads.key_width)),
            "k": self.norm_heads(draw(*heads, self.heads.key_width)),
            "v": draw(*heads, width),
            "log_decay": -draw(*heads, *decays).square().clamp(max=-MIN_LOG_DECAY),
            "beta": self.max_beta * torch.sigmoid(draw(*heads, *strengths)),
            "initial": draw(ROWS, self.n_heads, self.heads.key_width, width),
        }
        forms: dict[str, Function] = {"fla": delta_in_kernels}
        return Trial(delta_memory, forms, inputs, ("q", "k", "v"), trial_layout())

    def statistics(self, h: Tensor) -> dict[str, Tensor]:
        """See :meth:`Memory.statistics`; ``beta`` is how much of a value a token replaces,
        ``erase`` and ``write`` what it takes from and adds to channels."""
        strengths = self._strengths(h).movedim(2, -1)  # (B, T, H), or (B, T, K + V, H)
        statistics = {"horizon": horizons_of(self._log_decays(h))}
        if self.beta is not None:
            statistics["beta"] = strengths.flatten(0, 1)
        else:
            erased, written = strengths.split([self.heads.key_width, self.heads.value_width], dim=2)
            statistics |= {"erase": erased.flatten(0, 2), "write": written.flatten(0, 2)}
        return statistics | self.output_statistics(h)

    def flops_per_token(self) -> float:
        """Count projections and, per state entry, decay, old value (2), write (2), read (2)."""
        gates = [m.weight for m in self.modules() if isinstance(m, Gate)]
        gates += [m.weight for m in (self.erase, self.write) if m is not None]
        state = self.n_heads * self.heads.key_width * self.heads.value_width
        return self.around_flops() + sum(2.0 * w.numel() for w in gates) + 7.0 * state
