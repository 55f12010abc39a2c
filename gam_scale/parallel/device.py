"""Whether a run computes on GPUs: never on CPUs by mistake."""

from collections.abc import Mapping

import torch

from gam_scale.errors import UserError, one_line

GIVEN = ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES")


def on_gpus(device: str, env: Mapping[str, str]) -> bool:
    """Whether ``parallel.device`` is a GPU here.

    Raises:
        UserError: torch sees no GPU where the config asks for one, or, with ``auto``, where this
            process was given some.
    """
    if device == "cpu" or torch.cuda.is_available():
        return device != "cpu"
    why = "parallel.device is cuda" if device == "cuda" else gpus_given(env)
    if not why:
        return False
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is a CPU build"
    raise UserError(
        f"{why} but torch sees no GPU ({torch.__version__} {built}); expected one, with a torch "
        "for it (python3 tools/bootstrap.py --torch cuda), or parallel.device=cpu to use CPUs"
    )


def gpus_given(env: Mapping[str, str]) -> str:
    """How this process was given GPUs, for a message; empty where it was not."""
    for name in GIVEN:
        if name == "CUDA_VISIBLE_DEVICES" and "LOCAL_SIZE" in env:
            continue  # the deepspeed command sets it on machines without a GPU too
        none = ("", "-1", "NoDevFiles", "0" if name == "SLURM_GPUS_ON_NODE" else "")
        if (value := env.get(name, "").strip()) not in none:
            return f"{name} is {one_line(value)}"
    return ""
