"""Read the numbers that launchers and schedulers leave in the environment."""

import re
from collections.abc import Mapping

from gam_scale.errors import UserError
from gam_scale.strict import shown


def number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return the whole number, zero or more, that the variable ``name`` holds.

    Args:
        env: the environment.
        name: the variable's name.
        default: the result if the variable is absent or empty; None: it must be set.

    Raises:
        UserError: the variable holds no such number.
    """
    value = env.get(name, "")
    if not value and default is not None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise UserError(f"{name} is {shown(value)} in the environment; expected a number")
    return int(value)


def tasks_here(env: Mapping[str, str]) -> int:
    """Return this node's number of tasks, which Slurm gives for all nodes as in ``4(x2),3``.

    Raises:
        UserError: Slurm's variables do not say.
    """
    text, node = env.get("SLURM_STEP_TASKS_PER_NODE", ""), number(env, "SLURM_NODEID")
    for part in text.split(","):
        if not (match := re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part, re.ASCII)):
            break
        node -= int(match[2] or 1)
        if node < 0:
            return int(match[1])
    raise UserError(
        f"SLURM_STEP_TASKS_PER_NODE is {shown(text)} and SLURM_NODEID {env['SLURM_NODEID']} in the "
        "environment; expected tasks of each node, as srun sets them"
    )
