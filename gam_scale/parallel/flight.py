"""torch's flight recorder: the collectives each rank has begun and ended, written when one hangs.

torch keeps the last :data:`ENTRIES` collectives in memory and writes them to a file when NCCL's own
time-out expires. The watchdog ends the process earlier (see
:data:`gam_scale.parallel.world.PATIENCE`), and has them written first.
"""

import os
from collections.abc import Mapping

import torch

from gam_scale.parallel.deadline import deadline

ENTRIES = 2000
"""Number of collectives kept: several steps of a deep model, in about a megabyte."""
FILE = "TORCH_FR_DUMP_TEMP_FILE"
"""The environment variable that holds the records' path, to which torch appends the rank."""
WRITING_S = 20.0
"""Seconds allowed for writing: a rank that waits for a broken GPU or disk ends without a record."""


def settings(prefix: str) -> dict[str, str]:
    """Return environment variables that switch recording on and avoid gaps in a GPU's memory.

    slurm/common.sh sets the same ones. A variable that is set already takes precedence.

    Args:
        prefix: the records' path without the rank.
    """
    return {
        "TORCH_FR_BUFFER_SIZE": str(ENTRIES),
        FILE: prefix,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }


def write_record(rank: int, env: Mapping[str, str] = os.environ) -> str:
    """Write the record of this rank's collectives.

    Returns its path; an empty string if :data:`FILE` is not set or the record cannot be written.
    The process ends with status 1 if writing takes longer than :data:`WRITING_S`.
    """
    if not (prefix := env.get(FILE)):
        return ""
    c10d = torch._C._distributed_c10d
    record = getattr(c10d, "_dump_nccl_trace", None) or getattr(c10d, "_dump_fr_trace", None)
    if record is None:
        return ""
    path = f"{prefix}{rank}"
    try:
        with deadline(WRITING_S):
            content = record()
            with open(path, "wb") as file:
                file.write(content)
    except (OSError, RuntimeError):
        return ""
    return path
