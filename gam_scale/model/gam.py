"""The Gated Associative Memory layer (arXiv 2509.00605), around a memory of any kind."""

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from gam_scale.errors import UserError
from gam_scale.model.block import Block, State
from gam_scale.model.context import Context
from gam_scale.model.conv import CausalConv, check_taps
from gam_scale.model.layout import Layout
from gam_scale.model.linear import Linear
from gam_scale.model.memory.base import Memory, WrittenMemory
from gam_scale.model.memory.heads import Activation, GateChoice, Heads
from gam_scale.model.parts import MixerConfig, Naming, check_divides
from gam_scale.model.policy import GATE_MATRIX
from gam_scale.model.shape import WIDEST, Shape
from gam_scale.strict import option, shown


@dataclass(frozen=True)
class GAMLayer(MixerConfig):
    """What gam layers have in common; a kind adds its memory's settings and builds it."""

    kernel_size: int = option(
        3, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST
    )
    fusion: Literal["gate", "local", "sum"] = option(
        "gate",
        "how local and global paths join; gate: a learned sigmoid gate each; local: one on the "
        "local path, where the memory has an output gate of its own; sum: none",
    )
    paths: Literal["both", "local", "global"] = option(
        "both", "ablation: keep both paths, only the convolution, or only the memory"
    )

    sections: ClassVar[tuple[str, ...]] = ("gam", "memory")
    by_pieces: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return f"Gated associative memory written by the context ({self.kind})"

    @property
    def reads_local(self) -> bool:
        """Whether the memory reads what the convolution gives, too."""
        return False

    @property
    def gates_output(self) -> bool:
        """Whether the memory has a gate on what it reads, which may stand for a fusion gate."""
        return False

    @abstractmethod
    def build_memory(self, shape: Shape) -> Memory:
        """The memory's module."""

    def build(self, shape: Shape) -> Block:
        """See :meth:`MixerConfig.build`."""
        return GAMBlock(self, shape)

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        if self.fusion != "local":
            return
        by_default = type(self).fusion == "local"  # nobody need have asked for it
        if self.paths == "global" and not by_default:
            raise UserError(
                f"{name('fusion')} is local, a gate on the local path, with paths global, which "
                "leaves that out; expected fusion sum, or paths both"
            )
        if self.paths == "both" and not self.gates_output:
            whose = f", the default of {self.kind}," if by_default else ""
            raise UserError(
                f"{name('fusion')} is local{whose} beside a memory without an output gate, whose "
                "path would have none; expected fusion gate, or sum for none"
            )

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`: settings of a path that is left out.

        Of the longest horizon a run's complete config has its own length, whatever the paths.
        """
        shared = {field.name for field in fields(GAMLayer)} | {"max_horizon"}
        for field in fields(self):
            is_memorys, value = field.name not in shared, getattr(self, field.name)
            dead = {"local": is_memorys, "global": field.name == "kernel_size"}
            if dead.get(self.paths) and value != field.default:
                raise UserError(
                    f"{name(field.name)} is {shown(value)} with paths {self.paths}, which leaves "
                    f"out the {'memory' if is_memorys else 'convolution'}; expected paths both, or "
                    f"no {field.name}"
                )

    def check_length(self, tokens: int, cut: str, name: Naming) -> None:
        """See :meth:`MixerConfig.check_length`."""
        if self.paths != "global":
            check_taps(self.kernel_size, name("kernel_size"), tokens, cut)


@dataclass(frozen=True)
class WrittenLayer(GAMLayer):
    """A gam layer whose memory the context writes, through gates that forget."""

    in_chunks: ClassVar[bool] = True

    min_horizon: float = option(
        16.0, "tokens over which the fastest gate forgets at initialisation", above=1
    )
    max_horizon: float = option(
        0.0,
        "the slowest one; those between are spread evenly in the logarithm, and a head alone has "
        "the middle; 0: data.seq_len",
        at_least=0,
    )

    memory_input: Literal["mixed", "plain"] = option(
        "mixed",
        "what the memory reads: mixed, the tokens and what the convolution beside it gives for "
        "them, h + conv(h); plain, h alone",
    )
    conv_size: int = option(
        0,
        "taps of causal depthwise convolutions behind the memory's projections: on queries, keys "
        "and values, or of scan on what is averaged; 0: none",
        at_least=0,
        at_most=WIDEST,
    )
    activation: Activation = option("none", "of the same, behind all that")

    @property
    def reads_local(self) -> bool:
        """See :attr:`GAMLayer.reads_local`."""
        return self.memory_input == "mixed"

    def horizons(self, shape: Shape) -> tuple[float, float]:
        """The fastest and the slowest gate's at initialisation."""
        return horizons(self.min_horizon, self.max_horizon, shape.context)

    def at_length(self, seq_len: int) -> Self:
        """See :meth:`MixerConfig.at_length`."""
        _, longest = horizons(self.min_horizon, self.max_horizon, seq_len)
        return replace(self, max_horizon=longest)

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        super().check(shape, name)
        if self.memory_input == "plain" and self.paths != "both":
            raise UserError(
                f"{name('memory_input')} is plain with paths {self.paths}, where a memory has no "
                "convolution beside it; expected mixed, or paths both"
            )
        check_horizons(self.min_horizon, self.max_horizon, name("min_horizon"))

    def check_length(self, tokens: int, cut: str, name: Naming) -> None:
        """See :meth:`MixerConfig.check_length`."""
        super().check_length(tokens, cut, name)
        if self.paths != "local":
            check_taps(self.conv_size, name("conv_size"), tokens, cut)


@dataclass(frozen=True)
class HeadLayer(WrittenLayer):
    """A gam layer whose memory has heads with queries and keys."""

    n_heads: int = option(
        4,
        "heads, each with a state of its own; divides d_model where that gives them their width",
        at_least=1,
        at_most=WIDEST,
    )
    output_gate: GateChoice = option(
        "none",
        "what multiplies the heads' read-out before the output layer, of a projection of the "
        "tokens; the norm of each head then has a weight",
    )

    small: ClassVar[dict[str, object]] = {"n_heads": 2}
    of_pairs: ClassVar[bool] = False
    """Whether channels are pairs, of complex numbers."""

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        self.check_widths(shape, name)
        super().check(shape, name)

    def check_widths(self, shape: Shape, name: Naming) -> None:
        """Refuse heads that do not divide the width, or whose own does not do."""
        even = self.of_pairs or shape.rotary == "all"
        check_divides(name("n_heads"), self.n_heads, shape, even=even)

    @property
    def gates_output(self) -> bool:
        """See :attr:`GAMLayer.gates_output`."""
        return self.output_gate != "none"

    def heads(self, shape: Shape) -> Heads:
        """Their sizes, and what stands around them."""
        width = shape.d_model // self.n_heads
        around = (self.conv_size, self.activation, self.output_gate)
        return Heads(self.n_heads, width, width, self.n_heads, *around)

    def head_width(self, shape: Shape) -> float:
        """See :meth:`MixerConfig.head_width`."""
        return float(self.heads(shape).key)

    def turned_widths(self, shape: Shape) -> tuple[int, ...]:
        """See :meth:`MixerConfig.turned_widths`."""
        return (self.heads(shape).key,) if shape.rotary == "all" else ()


@dataclass(frozen=True)
class DecayLayer(HeadLayer):
    """A layer with heads whose decays may begin as those of gated delta nets do."""

    decay_start: Literal["horizons", "published"] = option(
        "horizons",
        "how fast gates forget at initialisation; horizons: as min_horizon and max_horizon say; "
        "published: rates uniform from 0 to 16, or from 1 where channels decay, times steps "
        "log-uniform from 0.001 to 0.1, as gated delta nets begin",
    )

    def at_length(self, seq_len: int) -> Self:
        """See :meth:`MixerConfig.at_length`."""
        return super().at_length(seq_len) if self.decay_start == "horizons" else self

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`."""
        super().check_own(name)
        usual = type(self)  # what it has by default gives way to what the user says
        for field in ("min_horizon", "max_horizon"):
            is_set = getattr(self, field) != getattr(usual, field)
            if self.decay_start == "published" and is_set:
                raise UserError(
                    f"{name(field)} is {getattr(self, field):g} with decay_start published, which "
                    f"decides over all horizons; expected decay_start horizons, or no {field}"
                )


def horizons(shortest: float, longest: float, context: int) -> tuple[float, float]:
    """In tokens; a longest one of 0 is the context's length."""
    return shortest, longest or max(shortest, float(context))


def check_horizons(shortest: float, longest: float, key: str) -> None:
    """Refuse a shortest one, of the setting ``key``, above the longest."""
    if 0 < longest < shortest:
        raise UserError(
            f"{key} is {shortest:g}, above max_horizon {longest:g}; expected at most that, or "
            "max_horizon 0"
        )


class GAMBlock(Block):
    """Local convolution and global memory, fused by gates, then a feed-forward network.

        h = LayerNorm(x)
        x = x + sigmoid(g_l) * conv(h) + sigmoid(g_g) * memory(h)     (g_l, g_g) = Linear(h)
        x = x + FFN(LayerNorm(x))

    A written memory reads h + conv(h) instead of h: a token can then store its neighbour's value
    under its own key. On recall (128 tokens, 8 pairs, width 64, 2 layers, 420 steps) the delta rule
    answers 97% so, and 13% from h alone.

    Ablations: ``fusion = "sum"`` leaves out the gates; ``paths`` keeps one path only, with its own
    gate if fusion is by gate. ``fusion = "local"`` leaves out g_g.
    """

    layer: GAMLayer

    def make(self, shape: Shape) -> None:
        """See :meth:`Block.make`."""
        d, layer = shape.d_model, self.layer
        self.reads_local = layer.reads_local
        has_conv, has_memory = layer.paths != "global", layer.paths != "local"
        self.conv = CausalConv(d, layer.kernel_size, shape.biases) if has_conv else None
        self.memory = layer.build_memory(shape) if has_memory else None
        paths = {
            "conv": has_conv and layer.fusion != "sum",
            "memory": has_memory and layer.fusion == "gate",
        }
        self.gated = [name for name, has_gate in paths.items() if has_gate]
        self.gate = None
        if self.gated:
            gates = len(self.gated) * d
            self.gate = Linear(d, gates, bias=shape.biases, weight=GATE_MATRIX)

    def mix(self, h: Tensor, layout: Layout, context: Context | None) -> list[Tensor]:
        """See :meth:`Block.mix`."""
        local = self.conv(h, layout, context) if self.conv is not None else None
        recalled = None
        if self.memory is not None:
            recalled = self.memory(self._memory_input(h, local), layout, context)
        return self._gated(h, local, recalled)

    def mix_next(self, h: Tensor, state: State, layout: Layout) -> tuple[list[Tensor], State]:
        """See :meth:`Block.mix_next`; at a cost that does not depend on the past.

        Differentiable, documents included: a long sequence may be trained on piece by piece.
        """
        local, recalled, state = None, None, dict(state)
        if self.conv is not None:
            local, state["conv"] = self.conv.extend(h, state["conv"], layout)
        if self.memory is not None:
            recalled, new = self.memory.extend(self._memory_input(h, local), state, layout)
            state |= new
        return self._gated(h, local, recalled), state

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """The convolution's last inputs, and what the memory holds."""
        state = {}
        if self.conv is not None:
            state["conv"] = self.conv.init_state(batch_size, device, dtype)
        if self.memory is not None:
            state |= self.memory.init_state(batch_size, device, dtype)
        return state

    def mixer_statistics(self, h: Tensor, layout: Layout) -> dict[str, Tensor]:
        """See :meth:`Block.mixer_statistics`: how far its gates open, and its memory's."""
        local = self.conv(h, layout, None) if self.conv is not None else None
        statistics: dict[str, Tensor] = {}
        for name, gate in self._gates(h).items():
            statistics[f"{name}_gate"] = gate.reshape(-1, 1)
        if self.memory is not None:
            seen = self._memory_input(h, local)
            statistics |= self.memory.statistics(seen)
            if isinstance(self.memory, WrittenMemory):
                statistics["state_norm"] = self.memory.state_norm(seen, layout)
        return statistics

    def _memory_input(self, h: Tensor, local: Tensor | None) -> Tensor:
        return h + local if self.reads_local and local is not None else h

    def _gated(self, h: Tensor, local: Tensor | None, recalled: Tensor | None) -> list[Tensor]:
        gates, paths = self._gates(h), {"conv": local, "memory": recalled}
        there = {name: path for name, path in paths.items() if path is not None}
        return [gates[name] * path if name in gates else path for name, path in there.items()]

    def _gates(self, h: Tensor) -> dict[str, Tensor]:
        """From 0 to 1, of those paths that have one: (B, T, d)."""
        if self.gate is None:
            return {}
        gates = torch.sigmoid(self.gate(h)).chunk(len(self.gated), dim=-1)
        return dict(zip(self.gated, gates, strict=True))

    @property
    def reach(self) -> int | None:
        """A constant bank sees no other token; the convolution sees kernel_size - 1."""
        if isinstance(self.memory, WrittenMemory):
            return None
        return self.conv.kernel_size - 1 if self.conv is not None else 0

    @property
    def mixes_by(self) -> str:
        """See :attr:`Block.mixes_by`."""
        return "the convolutions" if self.reach else ""

    def mixer_flops(self, seq_len: int) -> float:
        """See :meth:`Block.mixer_flops`: the same at any sequence length."""
        total = sum(p.flops_per_token() for p in (self.conv, self.memory) if p is not None)
        return total + (2.0 * self.gate.weight.numel() if self.gate is not None else 0.0)
