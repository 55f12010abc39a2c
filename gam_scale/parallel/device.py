"""Whether a run computes on GPUs, and on which of them this rank does.

A run that asks for GPUs, or was given some, never computes on CPUs by mistake.
"""

import socket
from collections.abc import Mapping

import torch

from gam_scale.environment import number, tasks_here
from gam_scale.errors import UserError, one_line

GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")


def on_gpus(device: str, env: Mapping[str, str]) -> bool:
    """Whether ``parallel.device`` is a GPU here.

    Raises:
        UserError: torch sees no GPU where the config asks for one, or, with ``auto``, where this
            process was given some.
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
    """Whether ``parallel.device`` is an Apple GPU here, where it is none of NVIDIA's.

    Raises:
        UserError: it is asked for, and torch sees none, or several ranks would share it.
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
    """How this process was given GPUs, for a message; empty where it was not."""
    for name in GIVEN:
        if name == "CUDA_VISIBLE_DEVICES" and "LOCAL_SIZE" in env:
            continue  # the deepspeed command sets it on machines without a GPU too
        none = ("", "-1", "NoDevFiles", "0" if name == "SLURM_GPUS_ON_NODE" else "")
        if (value := env.get(name, "").strip()) not in none:
            return f"{name} is {one_line(value)}"
    return ""


def gpu_of(local_rank: int, local_size: int, env: Mapping[str, str]) -> int:
    """Which of the GPUs that torch sees here is this rank's.

    Number ``local_rank`` where every rank of the host sees the GPUs of all. Under Slurm's
    ``--gpus-per-task`` and ``--gpu-bind`` a task may see its own GPU only, which is then number 0.

    Args:
        local_rank: of this rank among those of its host.
        local_size: how many these are.
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
    """Whether each rank is a task of srun that was given a GPU of its own.

    Ranks that torchrun or deepspeed start inside one task are not.
    """
    if "SLURM_LOCALID" not in env or "SLURM_STEP_TASKS_PER_NODE" not in env:
        return False
    on_node = number(env, "SLURM_GPUS_ON_NODE", ranks)  # of the step; old versions do not say
    is_a_task = number(env, "SLURM_LOCALID") == local_rank
    return is_a_task and tasks_here(env) == ranks and on_node >= ranks
