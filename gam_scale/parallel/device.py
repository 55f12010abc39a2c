"""Decide whether a run computes on GPUs, and which GPU is this rank's.

A run that asks for GPUs, or was given some, never computes on CPUs by mistake.
"""

import socket
from collections.abc import Mapping

import torch

from gam_scale.environment import number, tasks_here
from gam_scale.errors import UserError, one_line

GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")


def on_gpus(device: str, env: Mapping[str, str]) -> bool:
    """Return whether ``parallel.device`` means an NVIDIA GPU on this machine.

    Raises:
        UserError: torch sees no GPU, but the config asks for one or, with ``auto``, this process
            was given some.
    """
    if device in ("cpu", "mps") or torch.cuda.is_available():
        return device not in ("cpu", "mps")
    why = "parallel.device is cuda" if device == "cuda" else gpus_given(env)
    if not why:
        return False
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
    raise UserError(
        f"{why} but torch sees no GPU ({torch.__version__} {built}); expected one, with a torch "
        "for it (python3 tools/bootstrap.py --torch cuda), or parallel.device=cpu to use CPUs"
    )


def on_apple_gpu(device: str, engine: str, world_size: int) -> bool:
    """Return whether ``parallel.device`` means an Apple GPU, on a machine without NVIDIA's.

    Raises:
        UserError: an Apple GPU is asked for, but torch sees none or several ranks would share it.
    """
    if device == "mps" and not torch.backends.mps.is_available():
        built = "is built without it" if not torch.backends.mps.is_built() else "finds none"
        raise UserError(
            f"parallel.device is mps but torch sees no Apple GPU ({torch.__version__} {built}); "
            "expected macOS on Apple silicon, or parallel.device=cpu"
        )
    if device == "mps" and world_size > 1:
        raise UserError(
            f"parallel.device is mps with {world_size} ranks; expected one, which has the GPU alone"
        )
    may_be = device == "mps" or (device == "auto" and engine == "torch" and world_size == 1)
    return may_be and torch.backends.mps.is_available()


def gpus_given(env: Mapping[str, str]) -> str:
    """Return, for a message, which variable gives this process GPUs; empty if none does."""
    for name in GIVEN:
        if name == "CUDA_VISIBLE_DEVICES" and "LOCAL_SIZE" in env:
            continue  # the deepspeed command sets it on machines without a GPU too
        none = ("", "-1", "NoDevFiles", "0" if name == "SLURM_GPUS_ON_NODE" else "")
        if (value := env.get(name, "").strip()) not in none:
            return f"{name} is {one_line(value)}"
    return ""


def gpu_of(local_rank: int, local_size: int, env: Mapping[str, str]) -> int:
    """Return the number of this rank's GPU among those that torch sees.

    It is ``local_rank`` where every rank of the host sees the GPUs of all. Under Slurm's
    ``--gpus-per-task`` and ``--gpu-bind`` a task may see its own GPU only, which is then number 0.

    Args:
        local_rank: this rank's number among the ranks of its host.
        local_size: number of ranks on the host.
        env: the environment, as Slurm set it.

    Raises:
        UserError: two ranks of this host would have to share a GPU.
    """
    visible, ranks = torch.cuda.device_count(), max(local_size, local_rank + 1)
    if visible >= ranks:
        return local_rank
    if visible == 1 and _one_gpu_a_task(local_rank, ranks, env):
        return 0
    shown = env.get("CUDA_VISIBLE_DEVICES")
    among = "" if shown is None else f" (CUDA_VISIBLE_DEVICES is {one_line(shown)})"
    raise UserError(
        f"{ranks} ranks run on {socket.gethostname()}, where torch sees {visible} GPUs{among}; "
        "expected a GPU for each rank, all of them visible to every rank or one of its own to each "
        "task of srun (--gpus-per-task=1)"
    )


def _one_gpu_a_task(local_rank: int, ranks: int, env: Mapping[str, str]) -> bool:
    """Return whether each rank is a task of srun that was given a GPU of its own.

    Ranks that torchrun or deepspeed start inside one task are not.
    """
    if "SLURM_LOCALID" not in env or "SLURM_STEP_TASKS_PER_NODE" not in env:
        return False
    on_node = number(env, "SLURM_GPUS_ON_NODE", ranks)  # the step's; old Slurm does not set it
    is_a_task = number(env, "SLURM_LOCALID") == local_rank
    return is_a_task and tasks_here(env) == ranks and on_node >= ranks
