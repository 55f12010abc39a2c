"""Models brought to one size: parameters by feed-forward widths, states by what heads hold."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

from gam_scale.compare.spec import ModelEntry, SizeSpec
from gam_scale.config import ModelConfig
from gam_scale.errors import UserError
from gam_scale.evaluate.state_size import StateSize, memory_size, state_size
from gam_scale.model.lm import LanguageModel, outline
from gam_scale.strict import from_dict

NARROWEST = 8
ROUND = 8
"""Widths are multiples of it, at which kernels are fast, where that comes near enough."""


@dataclass(frozen=True)
class Sized:
    """A model's settings, at the common size, and what its size is."""

    settings: dict[str, Any]
    """Of the model section."""
    parameters: int
    """Beside embeddings and head."""
    memory: int
    """Numbers that its written memories hold."""
    state: StateSize
    """All that it holds of a text: convolutions and caches too."""
    width: int
    """Of its feed-forward networks; 0: as its settings say."""

    @classmethod
    def of(cls, settings: dict[str, Any], width: int) -> Self:
        """The model of these settings, measured."""
        config = _config(settings)
        parameters = parameters_of(outline(config))
        return cls(settings, parameters, memory_size(config), state_size(config), width)

    @property
    def config(self) -> ModelConfig:
        """The same as a configuration."""
        return _config(self.settings)


def sized(name: str, entry: ModelEntry, shared: dict[str, Any], size: SizeSpec) -> Sized:
    """A model with the state and the parameters of ``size``.

    Args:
        name: of the model, for messages.
        entry: what is its own, and what may be chosen.
        shared: settings of the model section, vocab_size among them.
        size: the common size.

    Raises:
        UserError: no choice comes as near as the tolerance, or settings that cannot work.
    """
    settings = _fit_state(name, entry, shared | entry.model, size)
    width = 0
    if size.parameters:
        width = _fit_width(name, settings, size)
        settings = settings | {"ffn": _wide(settings, width)}
    _config(settings).check()
    return Sized.of(settings, width)


def parameters_of(model: LanguageModel) -> int:
    """Trainable numbers but for embeddings and the head."""
    outside = [model.embedding, model.position, model.head]
    known = {id(p) for module in outside if module is not None for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in known)


def _config(settings: dict[str, Any]) -> ModelConfig:
    return from_dict(ModelConfig, copy.deepcopy(settings), "model")


def _fit_state(
    name: str, entry: ModelEntry, settings: dict[str, Any], size: SizeSpec
) -> dict[str, Any]:
    """The choice among ``entry.fit`` whose memories come nearest to the common state."""
    tried: list[tuple[float, int, dict[str, Any]]] = []
    problem: UserError | None = None
    for chosen in _choices(name, entry, settings):
        try:
            config = _config(chosen)
            config.check()
        except UserError as error:
            problem = error
            continue
        held = memory_size(config)
        tried.append((abs(held / size.state - 1) if size.state else 0.0, held, chosen))
    if not tried:
        assert problem is not None, "there is one choice at least"
        raise UserError(f"models.{name}: {problem}")
    off, held, chosen = min(tried, key=lambda each: each[0])
    if entry.state == "equal" and off > size.tolerance:
        raise UserError(
            f"models.{name} holds {held:,} numbers at best and size.state is {size.state:,}; "
            f"expected other values in fit, or state own"
        )
    return chosen


def _choices(name: str, entry: ModelEntry, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for values in product(*entry.fit.values()):
        chosen = copy.deepcopy(settings)
        for key, value in zip(entry.fit, values, strict=True):
            kind, _, setting = key.partition(".")
            layers = [
                layer
                for layer in chosen.get("layers", [])
                if isinstance(layer, dict) and layer.get("kind") == kind
            ]
            if not layers or not setting:
                raise UserError(
                    f"models.{name}.fit has {key}, but model.layers has no object of the kind "
                    f"{kind}; expected KIND.SETTING of a layer that is an object"
                )
            for layer in layers:
                layer[setting] = value
        yield chosen


def _fit_width(name: str, settings: dict[str, Any], size: SizeSpec) -> int:
    """The width at which the parameters come nearest to the common number."""

    def parameters(width: int) -> int:
        return parameters_of(outline(_config(settings | {"ffn": _wide(settings, width)})))

    least, next_one = parameters(NARROWEST), parameters(NARROWEST + 1)
    if next_one == least:
        raise UserError(
            f"models.{name} has no layer whose feed-forward network is model.ffn, by whose width "
            "parameters are made equal; expected one"
        )
    exact = NARROWEST + (size.parameters - least) / (next_one - least)  # parameters are affine
    for multiple in (ROUND, 1):
        width = max(NARROWEST, multiple * round(exact / multiple))
        off = abs(parameters(width) / size.parameters - 1)
        if off <= size.tolerance / 2:
            return width
    if off > size.tolerance:
        raise UserError(
            f"models.{name} has {parameters(width):,} parameters with feed-forward networks of "
            f"{width} channels and size.parameters is {size.parameters:,}; expected a size that "
            "all models can have"
        )
    return width


def _wide(settings: dict[str, Any], width: int) -> dict[str, Any]:
    """The model's feed-forward network, so wide."""
    ffn = settings.get("ffn", "mlp")
    named = {"kind": ffn} if isinstance(ffn, str) else ffn
    return {key: value for key, value in named.items() if key != "mult"} | {"width": width}
