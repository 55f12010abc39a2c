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
    """The settings of all gam layers; each kind adds those of its memory, and builds it."""

    kernel_size: int = option(
        3, "taps of the causal depthwise convolution", at_least=1, at_most=WIDEST
    )
    fusion: Literal["gate", "local", "sum"] = option(
        "gate",
        "gates on the local and global paths before they are added; gate: a learned sigmoid gate "
        "on each; local: on the local path alone, for memories with an output gate of their own; "
        "sum: no gates",
    )
    paths: Literal["both", "local", "global"] = option(
        "both",
        "paths that a layer keeps, for ablations; local: the convolution alone; global: the memory "
        "alone",
    )

    sections: ClassVar[tuple[str, ...]] = ("gam", "memory")
    by_pieces: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return f"Gated associative memory written by the context ({self.kind})"

    @property
    def reads_local(self) -> bool:
        """Whether the memory also reads the convolution's output."""
        return False

    @property
    def gates_output(self) -> bool:
        """Whether the memory gates what it reads, which may take the place of a fusion gate."""
        return False

    @abstractmethod
    def build_memory(self, shape: Shape) -> Memory:
        """Build the memory's module."""

    def build(self, shape: Shape) -> Block:
        """See :meth:`MixerConfig.build`."""
        return GAMBlock(self, shape)

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        if self.fusion != "local":
            return
        by_default = type(self).fusion == "local"  # the user may not have asked for it
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
        """See :meth:`MixerConfig.check_own`: refuse settings of a path that is left out.

        ``max_horizon`` is exempt: a run's complete config has its length there, whatever the paths.
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

    def check_length(self, tokens: int, reason: str, name: Naming) -> None:
        """See :meth:`MixerConfig.check_length`."""
        if self.paths != "global":
            check_taps(self.kernel_size, name("kernel_size"), tokens, reason)


@dataclass(frozen=True)
class WrittenLayer(GAMLayer):
    """A gam layer whose memory the context writes, through gates that forget."""

    computes_in_chunks: ClassVar[bool] = True

    min_horizon: float = option(
        16.0, "tokens over which the fastest gate forgets at initialisation", above=1
    )
    max_horizon: float = option(
        0.0,
        "tokens over which the slowest gate forgets at initialisation; horizons between the two "
        "are spread evenly in the logarithm, and a single head takes the middle; 0: data.seq_len",
        at_least=0,
    )

    memory_input: Literal["mixed", "plain"] = option(
        "mixed",
        "what the memory reads; mixed: the tokens plus the output of the convolution beside it, h "
        "+ conv(h); plain: the tokens h alone",
    )
    conv_size: int = option(
        0,
        "taps of causal depthwise convolutions inside the memory, on its projected queries, keys "
        "and values (in scan, on what it averages); 0: no convolutions",
        at_least=0,
        at_most=WIDEST,
    )
    activation: Activation = option(
        "none",
        "activation of the projected queries, keys and values (in scan, of what it averages), "
        "after these convolutions",
    )

    @property
    def reads_local(self) -> bool:
        """See :attr:`GAMLayer.reads_local`."""
        return self.memory_input == "mixed"

    def horizons(self, shape: Shape) -> tuple[float, float]:
        """Return the shortest and the longest initial horizon of gates, in tokens."""
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

    def check_length(self, tokens: int, reason: str, name: Naming) -> None:
        """See :meth:`MixerConfig.check_length`."""
        super().check_length(tokens, reason, name)
        if self.paths != "local":
            check_taps(self.conv_size, name("conv_size"), tokens, reason)


@dataclass(frozen=True)
class HeadLayer(WrittenLayer):
    """A gam layer whose memory has heads with queries and keys."""

    n_heads: int = option(
        4,
        "heads, each with its own state; divides d_model where a head's width is d_model / n_heads",
        at_least=1,
        at_most=WIDEST,
    )
    output_gate: GateChoice = option(
        "none",
        "gate on the heads' read-out before the output layer: silu or sigmoid of a projection of "
        "the tokens; the norm of each head then has a weight; none: no gate",
    )

    small_settings: ClassVar[dict[str, object]] = {"n_heads": 2}
    of_pairs: ClassVar[bool] = False
    """Whether channels come in pairs, as complex numbers."""

    def check(self, shape: Shape, name: Naming) -> None:
        """See :meth:`Part.check`."""
        self.check_widths(shape, name)
        super().check(shape, name)

    def check_widths(self, shape: Shape, name: Naming) -> None:
        """Refuse heads that do not divide d_model, or whose own width is not accepted."""
        even = self.of_pairs or shape.rotary == "all"
        check_divides(name("n_heads"), self.n_heads, shape, even=even)

    @property
    def gates_output(self) -> bool:
        """See :attr:`GAMLayer.gates_output`."""
        return self.output_gate != "none"

    def heads(self, shape: Shape) -> Heads:
        """Return the sizes of the heads and the settings of the layers around them."""
        width = shape.d_model // self.n_heads
        around = (self.conv_size, self.activation, self.output_gate)
        return Heads(self.n_heads, width, width, self.n_heads, *around)

    def head_width(self, shape: Shape) -> float:
        """See :meth:`MixerConfig.head_width`."""
        return float(self.heads(shape).key_width)

    def turned_widths(self, shape: Shape) -> tuple[int, ...]:
        """See :meth:`MixerConfig.turned_widths`."""
        return (self.heads(shape).key_width,) if shape.rotary == "all" else ()


@dataclass(frozen=True)
class DecayLayer(HeadLayer):
    """A layer with heads whose decays may start as those of gated delta nets do."""

    decay_start: Literal["horizons", "published"] = option(
        "horizons",
        "how fast gates forget at initialisation; horizons: as min_horizon and max_horizon say; "
        "published: as gated delta nets begin, with rates uniform from 0 to 16 (from 1 to 16 with "
        "decay_per channel) times steps log-uniform from 0.001 to 0.1",
    )

    def at_length(self, seq_len: int) -> Self:
        """See :meth:`MixerConfig.at_length`."""
        return super().at_length(seq_len) if self.decay_start == "horizons" else self

    def check_own(self, name: Naming) -> None:
        """See :meth:`MixerConfig.check_own`."""
        super().check_own(name)
        usual = type(self)  # a kind's defaults are not refused, only what the user sets
        for field in ("min_horizon", "max_horizon"):
            is_set = getattr(self, field) != getattr(usual, field)
            if self.decay_start == "published" and is_set:
                raise UserError(
                    f"{name(field)} is {getattr(self, field):g} with decay_start published, which "
                    f"decides over all horizons; expected decay_start horizons, or no {field}"
                )


def horizons(shortest: float, longest: float, context: int) -> tuple[float, float]:
    """Return both horizons, in tokens; a longest one of 0 becomes the context's length."""
    return shortest, longest or max(shortest, float(context))


def check_horizons(shortest: float, longest: float, key: str) -> None:
    """Refuse a shortest horizon, set by ``key``, above the longest."""
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
    answers 97% that way, and 13% from h alone.

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
        """See :meth:`Block.mix_next`; the cost does not depend on the past.

        It is differentiable and resets at documents: a long sequence can be trained on by pieces.
        """
        local, recalled, state = None, None, dict(state)
        if self.conv is not None:
            local, state["conv"] = self.conv.extend(h, state["conv"], layout)
        if self.memory is not None:
            recalled, new = self.memory.extend(self._memory_input(h, local), state, layout)
            state |= new
        return self._gated(h, local, recalled), state

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return the convolution's last inputs and what the memory holds."""
        state = {}
        if self.conv is not None:
            state["conv"] = self.conv.init_state(batch_size, device, dtype)
        if self.memory is not None:
            state |= self.memory.init_state(batch_size, device, dtype)
        return state

    def mixer_statistics(self, h: Tensor, layout: Layout) -> dict[str, Tensor]:
        """See :meth:`Block.mixer_statistics`: how far gates open, and the memory's statistics."""
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
        """Return the gates, from 0 to 1, of the paths that have one: (B, T, d) each."""
        if self.gate is None:
            return {}
        gates = torch.sigmoid(self.gate(h)).chunk(len(self.gated), dim=-1)
        return dict(zip(self.gated, gates, strict=True))

    @property
    def reach(self) -> int | None:
        """See :attr:`Block.reach`: the convolution's alone, or None for a written memory."""
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
