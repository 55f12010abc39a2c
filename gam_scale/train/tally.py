"""Sums over a run's optimizer steps, kept on the device until somebody reads them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gam_scale.model.widest import widest


@dataclass(frozen=True)
class Counts:
    """The sums of a :class:`Tally`; a skipped step counts only in ``skipped`` and below it."""

    loss_sum: float = 0.0
    """Summed over this rank's targets."""
    targets: int = 0
    """Targets of all ranks."""
    steps: int = 0
    norm_sum: float = 0.0
    """Sum of the global gradient norms before clipping."""
    skipped: int = 0
    in_a_row: int = 0
    """Skipped steps in a row, up to the last step."""
    longest_streak: int = 0
    """Most skipped steps in a row."""
    longest_streak_end: int = 0
    """The last of the ``longest_streak`` skipped steps in a row."""


class Tally:
    """Sums up steps on ``device``; the host that adds a step does not wait for it.

    A step counts as skipped if its gradient norm is not finite.
    """

    def __init__(self, device: torch.device, start: Counts = Counts()) -> None:  # noqa: B008
        self._device = device
        self._counts = [
            torch.full((), value, dtype=widest(device), device=device)
            for value in vars(start).values()
        ]

    def add(self, step: int, loss_sum: Tensor, n_targets: int, grad_norm: Tensor) -> None:
        """Add one optimizer step.

        Args:
            step: its number.
            loss_sum: scalar, summed over this rank's targets.
            n_targets: targets of all ranks.
            grad_norm: scalar, the global norm before clipping.
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
        """Return the sums so far, after one wait for the device."""
        loss, targets, steps, norm, *skips = torch.stack(self._counts).tolist()
        return Counts(loss, int(targets), int(steps), norm, *map(int, skips))
