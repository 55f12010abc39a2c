"""What every engine's memory comes down to: contiguous parts of flattened tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gam_scale.errors import UserError

KINDS = ("param", "exp_avg", "exp_avg_sq")
"""Per parameter: its value and both of Adam's moments, all fp32."""


@dataclass(frozen=True)
class Shard:
    """Elements ``start`` to ``start + len(data)`` of one tensor, in row-major order.

    ZeRO cuts a flat concatenation of parameters at arbitrary elements and FSDP2 cuts each
    parameter between rows: both are contiguous here, and so is a whole tensor.
    """

    kind: str
    """One of :data:`KINDS`."""
    name: str
    """The parameter's."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    data: Tensor
    """A flat view of the engine's own memory."""
    copy: int = 0
    """Which of ``n_copies`` identical ones on as many ranks this is."""
    n_copies: int = 1

    @property
    def key(self) -> str:
        """The tensor's name in a checkpoint."""
        return f"{self.kind}.{self.name}"

    def write_from(self, whole: Tensor) -> None:
        """Copy this part out of the whole tensor, flattened."""
        self.data.copy_(whole[self.start : self.start + self.data.numel()])

    def own_part(self) -> "Shard":
        """The share of it that this rank saves where others hold the same."""
        n = self.data.numel()
        first, last = n * self.copy // self.n_copies, n * (self.copy + 1) // self.n_copies
        return Shard(self.kind, self.name, self.shape, self.start + first, self.data[first:last])


def check_tensors(
    where: object, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]]
) -> None:
    """Check tensors from elsewhere against a model's parameters.

    Args:
        where: named in the messages.
        found: shapes by ``KIND.NAME``; every parameter must be there, moments may be missing.
        expected: shapes by parameter name.

    Raises:
        UserError: naming a parameter that is missing, unknown or of another shape.
    """
    for key, shape in found.items():
        _, name = key.split(".", 1)
        if name not in expected:
            raise UserError(f"{where}: {name} is not a parameter of this model")
        if tuple(shape) != tuple(expected[name]):
            raise UserError(
                f"{where}: {key} has shape {tuple(shape)}; expected {tuple(expected[name])}, as "
                "the model's config has it"
            )
    for name in expected:
        if f"param.{name}" not in found:
            raise UserError(f"{where} has no parameter {name}, which this model needs")


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter, made here (zeros) if no step has made it yet."""
    state = optimizer.state[parameter]
    if not state:
        # Fused AdamW keeps its step count on the device of the parameter.
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state
