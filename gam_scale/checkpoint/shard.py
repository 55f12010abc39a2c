"""What every engine's memory comes down to: contiguous parts of flattened tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor

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


def moments_of(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter, made here (zeros) if no step has made it yet."""
    state = optimizer.state[parameter]
    if not state:
        # Fused AdamW keeps its step count on the device of the parameter.
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(parameter, requires_grad=False)
    return state
