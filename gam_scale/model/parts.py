"""The registry of parts: a layer is a mixer, a feed-forward network and a norm, each of some kind.

A part is one file in mixers/, feedforwards/ or norms/. Its configuration registers under its kind,
holds its settings with their documentation, says what it refuses and builds its module; what
else others want to know of a kind they ask of the configuration too. Nobody lists kinds.
"""

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from torch import nn

from gam_scale.errors import UserError
from gam_scale.model.shape import Shape
from gam_scale.strict import from_dict, option, shown

Naming = Callable[[str], str]
"""The full key, as the user wrote it, of a part's own setting."""


@dataclass(frozen=True)
class Part:
    """The configuration of a part; a kind's own one gives ``kind`` its only value."""

    kind: str = option("", "which one")

    def check(self, shape: Shape, name: Naming) -> None:
        """Refuse settings that do not go with each other or with the model's.

        Raises:
            UserError: naming the key, what is there and what would be accepted.
        """


@dataclass(frozen=True)
class NormConfig(Part):
    """Of a norm of the residual stream."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """A module from (..., d_model) to the same."""


@dataclass(frozen=True)
class FeedForwardConfig(Part):
    """Of what a layer computes of each token alone."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module | None:
        """A module from (..., d_model) to the same, with ``flops_per_token()``; None: nothing."""


P = TypeVar("P", bound=Part)


class Registry(Generic[P]):
    """The kinds of one family of parts, by name."""

    def __init__(self, noun: str, family: type) -> None:
        self.noun, self.family = noun, family
        self._kinds: dict[str, type[P]] = {}

    def register(self, config: type[P]) -> type[P]:
        """Add a kind: the decorator of its configuration."""
        kind = config.kind
        assert kind and kind not in self._kinds, f"{config.__name__} has the kind {kind!r}"
        self._kinds[kind] = config
        return config

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all()))

    def __contains__(self, kind: object) -> bool:
        return kind in self._all()

    def __getitem__(self, kind: str) -> type[P]:
        return self._all()[kind]

    def where(self, kind: str) -> tuple[str, str]:
        """The module that a kind's configuration is in, and its name there."""
        return self[kind].__module__, self[kind].__name__

    def read(self, value: Any, where: str) -> str | P:
        """What a config file says of a part: its kind alone, or an object with settings of it.

        Raises:
            UserError: no such kind, or a setting that this kind does not have.
        """
        if isinstance(value, self.family):
            return cast(P, value)
        kind = value.get("kind") if isinstance(value, dict) else value
        if not isinstance(kind, str) or kind not in self:
            missing = isinstance(value, dict) and "kind" not in value
            value = value.kind if isinstance(value, Part) else value  # of another family
            said = f"{where} has no kind" if missing else f"{where} is {shown(value)}"
            raise UserError(f"{said}; expected one of {self.named()}, or an object with that kind")
        if isinstance(value, str):
            return value
        known = [f.name for f in dataclasses.fields(self[kind])]
        for key in value:
            if key not in known:
                settings = f"some of {', '.join(known[1:])}" if known[1:] else "its kind alone"
                raise UserError(
                    f"{where}.{key} is {shown(value[key])}, but a {self.noun} of kind {kind} has "
                    f"no such setting; expected {settings}"
                )
        return from_dict(self[kind], value, where)

    def read_optional(self, value: Any, where: str) -> str | P | None:
        """As :meth:`read`; None where nothing is said."""
        return None if value is None else self.read(value, where)

    def of(self, value: str | P) -> P:
        """The configuration that a kind, or a configuration itself, stands for."""
        assert isinstance(value, str | self.family), f"{value} is no {self.noun}"
        return self[value]() if isinstance(value, str) else value

    def named(self) -> str:
        """All kinds, quoted, for a message."""
        return ", ".join(f'"{kind}"' for kind in self)

    def _all(self) -> dict[str, type[P]]:
        # For what the import does: each part registers. An export rewrites imports of this form.
        from gam_scale.model.every_part import __doc__ as _  # noqa: F401

        return self._kinds


NORMS: Registry[NormConfig] = Registry("norm", NormConfig)
FEED_FORWARDS: Registry[FeedForwardConfig] = Registry("feed-forward network", FeedForwardConfig)


def part(registry: Registry, default: Any, doc: str) -> Any:
    """A setting that is a part: its kind, or an object with settings of it."""
    return option(default, doc, read=registry.read_optional, type_name="a kind, or an object")


@dataclass(frozen=True)
class MixerConfig(Part):
    """Of a layer: its mixer's own settings, and which feed-forward network and norm go with it."""

    ffn: Any = part(FEED_FORWARDS, None, "the feed-forward network; null: model.ffn")
    norm: Any = part(NORMS, None, "the norms; null: model.norm")

    sections: ClassVar[tuple[str, ...]] = ()
    """Sections of the model from which a layer named by its kind alone takes settings that have
    their names, the last one first."""
    own: ClassVar[tuple[str, ...]] = ()
    """Settings that it takes from no section: what they mean there is not what it means by them."""
    by_pieces: ClassVar[bool] = False
    """Whether ``extend`` knows documents and is differentiable, so that a long sequence can be
    trained on segment by segment, and states be carried from one sequence to the next."""
    drops_weights: ClassVar[bool] = False
    """Whether it has attention weights, and drops them out: a CPU then takes another kernel."""
    in_chunks: ClassVar[bool] = False
    """Whether it computes more than the recurrence whose FLOPs it counts."""
    measured_as: ClassVar[str]
    """The kind of plan/gpu_blocks.json whose bytes and launches stand for it; each kind says it."""
    plan_note: ClassVar[str] = ""
    """What a plan says of a model that has such layers."""
    preset_of: ClassVar[str] = ""
    """The kind of which it is other defaults and nothing else: what holds of that one holds here.
    """
    counts_writes: ClassVar[bool] = False
    """Whether its output matrix begins larger where it is the layer's only write to the residual
    stream, as in mamba_ssm; kinds from before that was known begin as they did."""
    kernel: ClassVar[str] = ""
    """The package whose kernels it can run in on a GPU."""
    recall_after: ClassVar[tuple[str, ...]] = ()
    """Kinds that stand before it in a model that learns associative recall."""
    recall: ClassVar[dict[str, tuple[str, ...]]] = {}
    """By preset of that task, ``KEY=VALUE`` settings of its own."""
    small: ClassVar[dict[str, Any]] = {}
    """Settings for a width of 16 or 32, where benchmarks and tests try it."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        assert not cls.kind or hasattr(cls, "measured_as"), f"{cls.__name__}: measured_as is what?"

    @property
    def title(self) -> str:
        """What a stack of such layers is called."""
        return f"Language model of {self.kind} layers"

    def check_own(self, name: Naming) -> None:
        """Refuse what decides nothing in a layer with settings of its own, as the user wrote it.

        Layers named by their kind take settings from sections that other kinds share.
        """

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """The layer's module, a :class:`~gam_scale.model.block.Block`, once it names its parts."""

    @property
    def is_residual(self) -> bool:
        """Whether what it computes is added to its input, of which it reads a norm."""
        return True

    def at_length(self, seq_len: int) -> Self:
        """This layer in a run on sequences of ``seq_len`` tokens."""
        return self

    def check_length(self, tokens: int, cut: str, name: Naming) -> None:
        """Refuse sequences that are too short, of which a rank has ``tokens``.

        Args:
            tokens: of a sequence on a rank.
            cut: how the sequence comes to be so short, for the message.
            name: see :data:`Naming`.
        """

    def slow_on_gpu(self, precision: str) -> str:
        """What of it no kernel for GPUs computes in a run's ``train.precision``; or nothing."""
        return ""

    def turned_widths(self, shape: Shape) -> tuple[int, ...]:
        """Widths of the heads for which rotary tables are needed."""
        return ()

    def head_width(self, shape: Shape) -> float:
        """Channels of a head, as far as the planner's figures depend on it."""
        return shape.d_model / 4

    @property
    def is_limited(self) -> bool:
        """Whether learned positions limit the length of a text in generation. A recurrent layer
        goes on past them, with positions that start over."""
        return False


MIXERS: Registry[MixerConfig] = Registry("layer", MixerConfig)


def implementations() -> list[str]:
    """Kinds of layers that are no presets of another."""
    return [kind for kind in MIXERS if not MIXERS[kind].preset_of]


def recall_layers(small: dict[str, Any], zoology: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """:attr:`MixerConfig.recall` of a kind whose model there has one layer.

    Args:
        small: the layer in small tasks, with its kind.
        zoology: in recall at the size of arXiv 2312.04927.
    """
    layers = dict.fromkeys(("cpu", "parity", "s3", "s3_swaps"), small) | {"zoology": zoology}
    return {preset: (f"model.layers={json.dumps([layer])}",) for preset, layer in layers.items()}


def check_divides(key: str, n_heads: int, shape: Shape, *, even: bool) -> None:
    """Refuse heads that do not divide the width, or of odd widths where pairs are turned."""
    if shape.d_model % n_heads:
        raise UserError(
            f"{key} is {n_heads}, which does not divide model.d_model {shape.d_model}; "
            "expected a divisor"
        )
    if even and shape.d_model // n_heads % 2:
        raise UserError(
            f"{key} is {n_heads}, which gives heads of {shape.d_model // n_heads} channels; "
            "expected an even number of them for phase memories and rotary positions"
        )
