"""The cost of compute in GPU-hours."""

from dataclasses import dataclass

from gam_scale.errors import UserError
from gam_scale.plan.gpus import Gpu, find_gpu

GPUS = ("h100", "h200", "a100-80", "l40s", "rtx4090")

MFU = 0.4
"""Assumed model FLOPs utilisation of a whole run, as a share of the GPU's peak rate: a usual figure
for dense language models."""


@dataclass(frozen=True)
class Cost:
    """GPU-hours at a share of each GPU's dense bf16 data-sheet rate."""

    gpus: tuple[Gpu, ...]
    share: float = MFU

    @classmethod
    def of(cls, names: list[str], share: float) -> "Cost":
        """Return the cost on GPUs, by their names in :mod:`gam_scale.plan.gpus`.

        Raises:
            UserError: a GPU is not in that table, or ``share`` is not between 0 and 1.
        """
        if not 0 < share <= 1:
            raise UserError(f"--mfu is {share:g}; expected more than 0 and at most 1")
        return cls(tuple(find_gpu(name.strip()) for name in names), share)

    def hours(self, flops: float, gpu: Gpu) -> float:
        """Return the GPU-hours of ``flops`` training FLOPs, on one GPU or spread over several."""
        return flops / (gpu.peak_flops("bf16") * self.share) / 3600
