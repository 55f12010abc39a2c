"""Choose the processor that computes, and a rank's share of a CPU's cores."""

import os
from pathlib import Path

import torch

from gam_scale.errors import UserError
from gam_scale.hardware.container import cpu_limit


def find_device(name: str) -> torch.device:
    """Return the device that ``--device`` means; ``auto``: an NVIDIA or Apple GPU, else the CPU.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        maker = "" if name == "cuda" else "Apple "
        raise UserError(f"--device is {name} but torch sees no {maker}GPU; expected cpu or auto")
    return torch.device(next((k for k in there if there[k]), "cpu") if name == "auto" else name)


def cpu_threads(local_world_size: int) -> int:
    """Return this rank's threads for matmuls: its share of the physical cores it may use.

    A container may use fewer than it sees.

    ``OMP_NUM_THREADS`` wins, except for the 1 that torchrun sets by itself for several ranks.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    by_torchrun = asked == "1" and local_world_size > 1 and "TORCHELASTIC_RUN_ID" in os.environ
    if asked.isdigit() and int(asked) > 0 and not by_torchrun:
        return int(asked)
    cores, limit = _physical_cores(), cpu_limit()
    return max(1, int(cores if limit is None else min(cores, limit)) // local_world_size)


def _physical_cores() -> int:
    """Count the cores among the CPUs this process is bound to, hyper-threads of a core once.

    psutil counts the whole machine's cores, whatever the process is bound to.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cpus = os.sched_getaffinity(0)
    try:
        topology = Path("/sys/devices/system/cpu")
        siblings = "topology/thread_siblings_list"
        return len({(topology / f"cpu{i}" / siblings).read_text() for i in cpus})
    except OSError:
        return len(cpus)


def synchronize(device: torch.device | str) -> None:
    """Wait until a GPU has done all its work; for a CPU, return at once."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
