"""Check whether tensors from elsewhere fit a model and an optimizer."""

from collections.abc import Mapping, Sequence

import torch

from gam_scale.checkpoint.shard import PARAM, StateSpec
from gam_scale.errors import UserError


def check_parameters(
    where: object, shapes: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> None:
    """Check tensors from elsewhere against a model's parameters.

    Args:
        where: named in the messages.
        shapes: shapes by ``KIND.NAME``; every parameter must be there, states may be missing.
        expected: shapes by parameter name.

    Raises:
        UserError: naming a parameter that is missing, unknown or of another shape.
    """
    for key, shape in shapes.items():
        kind, name = key.split(".", 1)
        if name not in expected:
            raise UserError(f"{where}: {name} is not a parameter of this model")
        if kind == PARAM and tuple(shape) != tuple(expected[name]):
            raise UserError(
                f"{where}: {key} has shape {tuple(shape)}; expected {tuple(expected[name])}, as "
                "the model's config has it"
            )
    for name in expected:
        if f"{PARAM}.{name}" not in shapes:
            raise UserError(f"{where} has no parameter {name}, which this model needs")


def check_states(
    where: object,
    tensors: Mapping[str, tuple[Sequence[int], torch.dtype]],
    expected: Mapping[str, StateSpec],
) -> None:
    """Check tensors from elsewhere against the states that an optimizer keeps.

    Args:
        where: named in the messages.
        tensors: shapes and dtypes by ``KIND.NAME``. Parameters are passed over; of each parameter
            all states must be there, or none.
        expected: states by ``KIND.NAME``.

    Raises:
        UserError: naming a state that is unknown, missing, or of another shape or dtype.
    """
    stepped = {name for kind, name in (key.split(".", 1) for key in tensors) if kind != PARAM}
    for key, (shape, dtype) in tensors.items():
        if key.startswith(f"{PARAM}."):
            continue
        state = expected.get(key)
        if state is None:
            kinds = sorted({key.partition(".")[0] for key in expected})
            raise UserError(
                f"{where} has {key}, which train.optimizer does not keep; expected states of "
                f"{', '.join(kinds)}, or checkpoint.init_from, which takes weights alone"
            )
        if (tuple(shape), dtype) != (state.shape, state.dtype):
            raise UserError(
                f"{where}: {key} is {dtype} of shape {tuple(shape)}; expected {state.dtype} of "
                f"shape {state.shape}, as train.optimizer keeps it"
            )
    for key in expected:
        kind, name = key.split(".", 1)
        if name in stepped and key not in tensors:
            raise UserError(
                f"{where} has no {kind} of {name}, but other states of it; expected all that "
                "train.optimizer keeps of a parameter, or none"
            )
