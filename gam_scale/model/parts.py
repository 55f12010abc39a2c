"""The registry of parts: a layer consists of a mixer, a feed-forward network and norms.

A part is one file in mixers/, feedforwards/ or norms/. Its configuration class registers under its
kind, holds and documents the settings, refuses invalid ones and builds the module. Other code asks
the configuration for anything else about a kind, so that no other file lists the kinds.
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
"""Maps the name of a part's setting to its full key in the config, as the user wrote it."""


@dataclass(frozen=True)
class Part:
    """The configuration of a part; the subclass for a kind fixes the value of ``kind``."""

    kind: str = option("", "name of the kind")

    def check(self, shape: Shape, name: Naming) -> None:
        """Refuse settings that conflict with each other or with the model's.

        Raises:
            UserError: with the key, its value and what would be accepted.
        """


@dataclass(frozen=True)
class NormConfig(Part):
    """The configuration of a norm of the residual stream."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """Build a module that maps (..., d_model) to the same shape."""


@dataclass(frozen=True)
class FeedForwardConfig(Part):
    """The configuration of a feed-forward network, which acts on each token separately."""

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module | None:
        """Build a module from (..., d_model) to the same shape, or return None for no network.

        The module has a method ``flops_per_token()``.
        """


P = TypeVar("P", bound=Part)


class Registry(Generic[P]):
    """Maps the kinds of one family of parts to their configuration classes."""

    def __init__(self, noun: str, family: type) -> None:
        self.noun, self.family = noun, family
        self._kinds: dict[str, type[P]] = {}

    def register(self, config: type[P]) -> type[P]:
        """Register a kind; the decorator of its configuration class."""
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
        """Return the module and the class name of a kind's configuration."""
        return self[kind].__module__, self[kind].__name__

    def read(self, value: Any, where: str) -> str | P:
        """Read a part from a config: a kind stays a string, an object becomes a configuration.

        Raises:
            UserError: no such kind, or a setting that this kind does not have.
        """
        if isinstance(value, self.family):
            return cast(P, value)
        kind = value.get("kind") if isinstance(value, dict) else value
        if not isinstance(kind, str) or kind not in self:
            missing = isinstance(value, dict) and "kind" not in value
            value = value.kind if isinstance(value, Part) else value  # a part of another family
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
        """Read a part as :meth:`read` does; None stays None."""
        return None if value is None else self.read(value, where)

    def of(self, value: str | P) -> P:
        """Return a kind's default configuration, or ``value`` itself if it is a configuration."""
        assert isinstance(value, str | self.family), f"{value} is no {self.noun}"
        return self[value]() if isinstance(value, str) else value

    def named(self) -> str:
        """Return all kinds, quoted and separated by commas, for a message."""
        return ", ".join(f'"{kind}"' for kind in self)

    def _all(self) -> dict[str, type[P]]:
        # Imported for its effect: every part registers. An export rewrites imports of this form.
        from gam_scale.model.every_part import __doc__ as _  # noqa: F401

        return self._kinds


NORMS: Registry[NormConfig] = Registry("norm", NormConfig)
FEED_FORWARDS: Registry[FeedForwardConfig] = Registry("feed-forward network", FeedForwardConfig)


def part(registry: Registry, default: Any, doc: str) -> Any:
    """Declare a setting that selects a part: a kind, or an object with a kind and settings."""
    return option(default, doc, read=registry.read_optional, type_name="a kind, or an object")


@dataclass(frozen=True)
class MixerConfig(Part):
    """The configuration of a layer: its mixer's settings, its feed-forward network and its norm."""

    ffn: Any = part(FEED_FORWARDS, None, "the feed-forward network; null: model.ffn")
    norm: Any = part(NORMS, None, "the norms; null: model.norm")

    sections: ClassVar[tuple[str, ...]] = ()
    """Sections of the model's config from which a layer named by its kind alone takes settings, by
    their names. If several sections have a setting, the last one counts."""
    not_from_sections: ClassVar[tuple[str, ...]] = ()
    """Settings that it takes from no section, because they mean something else there."""
    by_pieces: ClassVar[bool] = False
    """Whether ``extend`` is differentiable and resets where documents start. A long sequence can
    then be trained on segment by segment, and states carried from one sequence to the next."""
    drops_weights: ClassVar[bool] = False
    """Whether it applies dropout to attention weights, for which a CPU takes another kernel."""
    computes_in_chunks: ClassVar[bool] = False
    """Whether it computes in chunks, at more FLOPs than those of the recurrence that it counts."""
    gpu_block_kind: ClassVar[str]
    """The kind in plan/gpu_blocks.json whose bytes and launches stand for it; each kind sets it."""
    plan_note: ClassVar[str] = ""
    """A note that a plan shows for models with such layers."""
    preset_of: ClassVar[str] = ""
    """The kind that this one differs from in defaults only; empty: it is no preset."""
    counts_writes: ClassVar[bool] = False
    """Whether its output matrix starts larger, as in mamba_ssm, where it is the layer's only write
    to the residual stream. Kinds older than this rule keep their initialisation."""
    kernel: ClassVar[str] = ""
    """The package whose kernels it can use on a GPU; empty: none."""
    recall_after: ClassVar[tuple[str, ...]] = ()
    """Kinds of the layers before it in the models of the associative recall task."""
    recall: ClassVar[dict[str, tuple[str, ...]]] = {}
    """``KEY=VALUE`` settings for its models in that task, by the task's preset."""
    small_settings: ClassVar[dict[str, Any]] = {}
    """Settings with which benchmarks and tests try it at a width of 16 or 32."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        is_known = not cls.kind or hasattr(cls, "gpu_block_kind")
        assert is_known, f"{cls.__name__}: gpu_block_kind is what?"

    @property
    def title(self) -> str:
        """The name of a stack of such layers."""
        return f"Language model of {self.kind} layers"

    def check_own(self, name: Naming) -> None:
        """Refuse settings without effect in a layer that the user wrote as an object.

        Layers named by their kind are exempt: other kinds share the sections of their settings.
        """

    @abstractmethod
    def build(self, shape: Shape) -> nn.Module:
        """Build the layer's :class:`~gam_scale.model.block.Block`.

        ``ffn`` and ``norm`` must be configurations, as ``ModelConfig.stack`` sets them.
        """

    @property
    def is_residual(self) -> bool:
        """Whether the layer reads a norm of its input and adds its output to the input."""
        return True

    def at_length(self, seq_len: int) -> Self:
        """Return the layer as it is in a run on sequences of ``seq_len`` tokens."""
        return self

    def check_length(self, tokens: int, reason: str, name: Naming) -> None:
        """Refuse sequences of which a rank holds too few tokens for the layer.

        Args:
            tokens: tokens of a sequence on one rank.
            reason: why sequences are so short, with which the message begins.
            name: see :data:`Naming`.
        """

    def slow_on_gpu(self, precision: str) -> str:
        """Describe what has no GPU kernel in this ``train.precision``; empty: nothing."""
        return ""

    def turned_widths(self, shape: Shape) -> tuple[int, ...]:
        """Return the head widths for which the layer needs rotary tables."""
        return ()

    def head_width(self, shape: Shape) -> float:
        """Return the channels per head that the planner assumes."""
        return shape.d_model / 4

    @property
    def is_limited(self) -> bool:
        """Whether learned positions limit the length of a generated text. A recurrent layer can
        go on past them, with positions that start over."""
        return False


MIXERS: Registry[MixerConfig] = Registry("layer", MixerConfig)


def implementations() -> list[str]:
    """Return the kinds of layers that are not presets of another kind."""
    return [kind for kind in MIXERS if not MIXERS[kind].preset_of]


def recall_layers(small: dict[str, Any], zoology: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return :attr:`MixerConfig.recall` for a kind whose models in that task repeat one layer.

    Args:
        small: the layer in the small presets, with its kind.
        zoology: the layer in the preset at the size of arXiv 2312.04927.
    """
    layers = dict.fromkeys(("cpu", "parity", "s3", "s3_swaps"), small) | {"zoology": zoology}
    return {preset: (f"model.layers={json.dumps([layer])}",) for preset, layer in layers.items()}


def check_divides(key: str, n_heads: int, shape: Shape, *, even: bool) -> None:
    """Refuse ``n_heads`` that do not divide d_model or, with ``even``, give heads of odd width."""
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
