"""Named recipes around the gated delta rule: the kind ``delta`` with other defaults each."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gam_scale.model.memory.heads import Activation, GateChoice
from gam_scale.model.mixers.delta import DeltaRuleLayer
from gam_scale.model.parts import MIXERS


def _default(name: str, value: Any) -> Any:
    """The setting that :class:`DeltaRuleLayer` has under that name, with another default."""
    return dataclasses.field(
        default=value, metadata=DeltaRuleLayer.__dataclass_fields__[name].metadata
    )


@dataclass(frozen=True)
class _Preset(DeltaRuleLayer):
    activation: Activation = _default("activation", "silu")
    output_gate: GateChoice = _default("output_gate", "silu")

    preset_of: ClassVar[str] = "delta"
    # Not the section of gam layers: its defaults for the paths are the paper's.
    sections: ClassVar[tuple[str, ...]] = ("memory",)


@MIXERS.register
@dataclass(frozen=True)
class GatedDeltaNetLayer(_Preset):
    """The published layer (arXiv 2412.06464): convolutions inside, no local path beside it."""

    kind: Literal["gdn"] = "gdn"
    fusion: Literal["gate", "local", "sum"] = _default("fusion", "sum")
    paths: Literal["both", "local", "global"] = _default("paths", "global")
    conv_size: int = _default("conv_size", 4)
    expand_v: float = _default("expand_v", 2.0)
    decay_start: Literal["horizons", "published"] = _default("decay_start", "published")

    @property
    def title(self) -> str:
        """See :attr:`MixerConfig.title`."""
        return "Gated delta net"


@MIXERS.register
@dataclass(frozen=True)
class GAMDeltaLayer(_Preset):
    """GAM's local path beside the gated delta rule, whose output gate stands for a fusion gate."""

    kind: Literal["gam_delta"] = "gam_delta"
    fusion: Literal["gate", "local", "sum"] = _default("fusion", "local")
