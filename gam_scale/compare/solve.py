"""Bring models to one size: parameters by feed-forward widths, states by layer settings."""

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
"""Widths are multiples of this number, for fast kernels, if one comes near enough."""


@dataclass(frozen=True)
class Sized:
    """A model's settings at the common size, and its size."""

    settings: dict[str, Any]
    """Settings of the model section."""
    parameters: int
    """Number of parameters without embeddings and head."""
    memory: int
    """Numbers that its written memories hold."""
    state: StateSize
    """Numbers that it holds of a text in all, with convolutions and caches."""
    width: int
    """Width of its feed-forward networks; 0: as its settings say."""

    @classmethod
    def of(cls, settings: dict[str, Any], width: int) -> Self:
        """Return the model of these settings with its measured size."""
        config = _config(settings)
        parameters = parameters_of(outline(config))
        return cls(settings, parameters, memory_size(config), state_size(config), width)

    @property
    def config(self) -> ModelConfig:
        """The settings as a configuration."""
        return _config(self.settings)


def sized(name: str, entry: ModelEntry, shared: dict[str, Any], size: SizeSpec) -> Sized:
    """Return a model with the state and the parameters of ``size``.

    Args:
        name: name of the model, for error messages.
        entry: the model's own settings, and the values that may be chosen.
        shared: settings of the model section that all models share, such as vocab_size.
        size: the common size.

    Raises:
        UserError: no choice is within the tolerance, or the settings cannot work.
    """
    settings = _fit_state(name, entry, settings_over(shared, entry.model), size)
    width = 0
    if size.parameters:
        width = _fit_width(name, settings, size)
        settings = settings | {"ffn": _wide(settings, width)}
    _config(settings).check()
    return Sized.of(settings, width)


def settings_over(shared: Any, own: Any) -> Any:
    """Return a model's own settings, with those that they lack taken from the shared ones.

    Objects are merged at every depth. One of another ``kind`` replaces the shared one, whose
    settings are not its own.
    """
    if not (isinstance(shared, dict) and isinstance(own, dict)):
        return own
    if "kind" in own and own["kind"] != shared.get("kind", own["kind"]):
        return own
    return shared | {key: settings_over(shared.get(key), value) for key, value in own.items()}


def parameters_of(model: LanguageModel) -> int:
    """Count the parameters of a model without embeddings and head."""
    outside = [model.embedding, model.position, model.head]
    known = {id(p) for module in outside if module is not None for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in known)


def _config(settings: dict[str, Any]) -> ModelConfig:
    return from_dict(ModelConfig, copy.deepcopy(settings), "model")


def _fit_state(
    name: str, entry: ModelEntry, settings: dict[str, Any], size: SizeSpec
) -> dict[str, Any]:
    """Return settings with the values of ``entry.fit`` that come nearest to the common state."""
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
    """Return the feed-forward width whose parameters come near enough to the common number."""

    def parameters(width: int) -> int:
        return parameters_of(outline(_config(settings | {"ffn": _wide(settings, width)})))

    least, next_one = parameters(NARROWEST), parameters(NARROWEST + 1)
    if next_one == least:
        raise UserError(
            f"models.{name} has no layer whose feed-forward network is model.ffn, by whose width "
            "parameters are made equal; expected one"
        )
    exact = NARROWEST + (size.parameters - least) / (next_one - least)  # affine in the width
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
    """Return the settings of the model's feed-forward network, with this width."""
    ffn = settings.get("ffn", "mlp")
    named = {"kind": ffn} if isinstance(ffn, str) else ffn
    return {key: value for key, value in named.items() if key != "mult"} | {"width": width}
