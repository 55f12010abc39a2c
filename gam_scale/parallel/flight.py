"""The flight recorder: which collectives each rank has begun and ended, written where one hangs.

torch keeps the last :data:`ENTRIES` of them in memory and writes them to a file when NCCL's own
time-out is over. The watchdog ends the process earlier than that (see
:data:`gam_scale.parallel.world.PATIENCE`), and has them written first.
"""

import faulthandler
import os
from collections.abc import Mapping

import torch

ENTRIES = 2000
"""Collectives that are kept: several steps of a deep model, in about a megabyte."""
FILE = "TORCH_FR_DUMP_TEMP_FILE"
"""The variable that says where torch writes them: a path, to which it adds the rank."""
WRITING_S = 20.0
"""Seconds for writing: a rank that waits for a broken GPU or disk ends without a record."""


def settings(prefix: str) -> dict[str, str]:
    """Environment variables of a job that records, and that uses a GPU's memory without gaps.

    As slurm/common.sh sets them; whatever stands in the environment already wins.

    Args:
        prefix: where records are written, the path of a file without its rank.
    """
    return {
        "TORCH_FR_BUFFER_SIZE": str(ENTRIES),
        FILE: prefix,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }


def write_record(rank: int, env: Mapping[str, str] = os.environ) -> str:
    """Write what this rank's collectives have come to.

    Returns the path; nothing where :data:`FILE` is not set or it cannot be written. The process
    ends with status 1 if that takes longer than :data:`WRITING_S`.
    """
    if not (prefix := env.get(FILE)):
        return ""
    c10d = torch._C._distributed_c10d
    record = getattr(c10d, "_dump_nccl_trace", None) or getattr(c10d, "_dump_fr_trace", None)
    if record is None:
        return ""
    path = f"{prefix}{rank}"
    faulthandler.dump_traceback_later(WRITING_S, exit=True)
    try:
        content = record()
        with open(path, "wb") as file:
            file.write(content)
    except (OSError, RuntimeError):
        return ""
    finally:
        faulthandler.cancel_dump_traceback_later()
    return path
