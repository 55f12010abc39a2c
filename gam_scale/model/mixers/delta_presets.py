"""Presets of the gated delta rule: each is the kind ``delta`` with other defaults."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gam_scale.model.memory.heads import Activation, GateChoice
from gam_scale.model.mixers.delta import DeltaRuleLayer
from gam_scale.model.parts import MIXERS, recall_layers


def _default(name: str, value: Any, doc: str = "") -> Any:
    """Copy a setting of :class:`DeltaRuleLayer` with another default and, if given, doc."""
    metadata = DeltaRuleLayer.__dataclass_fields__[name].metadata
    return dataclasses.field(default=value, metadata={**metadata, "doc": doc or metadata["doc"]})


@dataclass(frozen=True)
class _Preset(DeltaRuleLayer):
    activation: Activation = _default("activation", "silu")
    output_gate: GateChoice = _default("output_gate", "silu")
    strength_bias: bool = _default("strength_bias", False)
    decay_gates: bool = _default("decay_gates", True)

    preset_of: ClassVar[str] = "delta"
    counts_writes: ClassVar[bool] = True
    # Without the section of gam layers, whose defaults for the paths are the paper's.
    sections: ClassVar[tuple[str, ...]] = ("memory",)


@dataclass(frozen=True)
class _Published(_Preset):
    """A layer as published: convolutions inside the memory, no local path beside it."""

    fusion: Literal["gate", "local", "sum"] = _default("fusion", "sum")
    paths: Literal["both", "local", "global"] = _default("paths", "global")
    conv_size: int = _default("conv_size", 4)
    decay_start: Literal["horizons", "published"] = _default("decay_start", "published")

    # Without effect here.
    not_from_sections: ClassVar[tuple[str, ...]] = ("min_horizon", "max_horizon")


@dataclass(frozen=True)
class _ByChannel(_Published):
    """Decays per channel, and an output gate of low rank."""

    output_gate: GateChoice = _default("output_gate", "sigmoid")
    output_gate_rank: Literal["full", "head"] = _default("output_gate_rank", "head")
    decay_per: Literal["head", "channel"] = _default("decay_per", "channel")


@MIXERS.register
@dataclass(frozen=True)
class GatedDeltaNetLayer(_Published):
    """The gated delta net as published (arXiv 2412.06464): 6 d_model^2 parameters."""

    kind: Literal["gdn"] = "gdn"
    head_dim: int = _default(
        "head_dim",
        0,
        "channels of a head's queries and keys; 0: 0.75 d_model / n_heads, as published, rounded "
        "to a whole number (an even one with rotary positions)",
    )
    expand_v: float = _default("expand_v", 2.0)

    keys_share: ClassVar[float] = 0.75
    # One head as wide as the model, for a state as large as other memories' in that task.
    recall: ClassVar[dict[str, tuple[str, ...]]] = recall_layers(
        {"kind": "gdn", "n_heads": 1, "head_dim": 64, "expand_v": 1},
        {"kind": "gdn", "n_heads": 1, "head_dim": 128, "expand_v": 1},
    )

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Gated delta net"


@MIXERS.register
@dataclass(frozen=True)
class KimiDeltaLayer(_ByChannel):
    """Kimi Delta Attention as published (arXiv 2510.26692)."""

    kind: Literal["kda"] = "kda"

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Kimi Delta Attention"


@MIXERS.register
@dataclass(frozen=True)
class GatedDeltaNet2Layer(_ByChannel):
    """GDN-2 as published (arXiv 2605.22791)."""

    kind: Literal["gdn2"] = "gdn2"
    strength_per: Literal["head", "channel"] = _default("strength_per", "channel")

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Gated delta net 2"


@MIXERS.register
@dataclass(frozen=True)
class GAMDeltaLayer(_Preset):
    """GAM's local path beside the gated delta rule, whose output gate replaces a fusion gate.

    Convolutions of 4 tokens stand inside as well: on prose, and to find values by their keys, both
    together are better than either alone (docs/memories.md).
    """

    kind: Literal["gam_delta"] = "gam_delta"
    fusion: Literal["gate", "local", "sum"] = _default("fusion", "local")
    conv_size: int = _default("conv_size", 4)
