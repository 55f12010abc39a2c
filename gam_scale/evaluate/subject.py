"""All that was measured of one checkpoint: its size, its loss, and how it uses its context."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from gam_scale.checkpoint.load import Trained
from gam_scale.evaluate.by_position import ByPosition
from gam_scale.evaluate.downstream.task import Figures
from gam_scale.evaluate.effective_context import EffectiveContext
from gam_scale.evaluate.key_values import PairsResult
from gam_scale.evaluate.loss import LossResult
from gam_scale.evaluate.needle import NeedleResult
from gam_scale.evaluate.same_tokens import Difference
from gam_scale.evaluate.state_size import StateSize, state_size
from gam_scale.evaluate.text import Read
from gam_scale.files import finite


@dataclass
class Subject:
    """A checkpoint and its measurements; None for those that were not asked for."""

    name: str
    checkpoint: str
    step: int
    layers: list[str]
    parameters: int
    state: StateSize
    seq_len: int
    read: Read | None = None
    loss: LossResult | None = None
    by_position: ByPosition | None = None
    same_tokens: Difference | None = None
    effective_context: EffectiveContext | None = None
    needle: NeedleResult | None = None
    pairs: PairsResult | None = None
    tasks: dict[str, Figures] | None = None


def subject(trained: Trained, name: str, seq_len: int) -> Subject:
    """Describe a checkpoint that has not been measured yet."""
    model = trained.config.model
    layers = list(map(str, model.layer_kinds()))
    parameters = trained.model.n_parameters()
    path = str(trained.path)
    return Subject(name, path, trained.step, layers, parameters, state_size(model), seq_len)


def to_json(value: Any) -> Any:
    """Convert results to plain JSON: dataclasses with their properties, non-finite floats null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        names += [key for key, v in vars(type(value)).items() if isinstance(v, property)]
        return {key: to_json(getattr(value, key)) for key in names}
    if isinstance(value, dict):
        return {key: to_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return finite(value)
