"""What a run's steps add up to, kept where they are computed until somebody asks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gam_scale.model.widest import widest


@dataclass(frozen=True)
class Counts:
    """What a :class:`Tally` holds. A skipped step counts in ``skipped`` and after it only."""

    loss_sum: float = 0.0
    """Over this rank's targets."""
    targets: int = 0
    """Of all ranks."""
    steps: int = 0
    norm_sum: float = 0.0
    """Of the global gradient norms, before clipping."""
    skipped: int = 0
    in_a_row: int = 0
    """Skipped ones up to the last step."""
    longest: int = 0
    """Most of them in a row."""
    longest_end: int = 0
    """The last step of those."""


class Tally:
    """Adds steps up on ``device``; a host that adds one does not wait for it.

    Whether a step was skipped is seen from its gradient norm, which is not finite then.
    """

    def __init__(self, device: torch.device, start: Counts = Counts()) -> None:  # noqa: B008
        self._device = device
        self._counts = [
            torch.full((), value, dtype=widest(device), device=device)
            for value in vars(start).values()
        ]

    def add(self, step: int, loss_sum: Tensor, n_targets: int, grad_norm: Tensor) -> None:
        """One optimizer step.

        Args:
            step: its number.
            loss_sum: over this rank's targets, a scalar.
            n_targets: of all ranks.
            grad_norm: global, before clipping, a scalar.
        """
        loss, targets, steps, norm, skipped, in_a_row, longest, end = self._counts
        grad_norm = grad_norm.detach().to(self._device, loss.dtype, non_blocking=True)
        applied = grad_norm.isfinite()
        loss += loss_sum.detach().where(applied, 0.0)
        norm += grad_norm.where(applied, 0.0)
        targets += applied * n_targets
        steps += applied
        skipped += ~applied
        in_a_row += 1
        in_a_row *= ~applied
        end.masked_fill_(in_a_row > longest, step)
        torch.maximum(longest, in_a_row, out=longest)

    def read(self) -> Counts:
        """The sums so far, for which the device is waited for, once."""
        loss, targets, steps, norm, *skips = torch.stack(self._counts).tolist()
        return Counts(loss, int(targets), int(steps), norm, *map(int, skips))
