"""Limits that a container or a Slurm job sets by control groups (cgroup v2)."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""File that names this process's group."""


def cpu_limit() -> float | None:
    """Return how many CPUs' time this process may use at once; None: no limit is set."""
    limits = []
    for text in _settings("cpu.max"):
        quota, _, period = text.partition(" ")
        if quota != "max":
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory_limit() -> int | None:
    """Return how many bytes of memory this process may use; None: no limit is set."""
    limits = [int(text) for text in _settings("memory.max") if text != "max"]
    return min(limits, default=None)


def _settings(name: str) -> Iterator[str]:
    """Yield a setting of this process's group and of all groups around it, where it is set."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:  # no Linux
        return
    own = next((line[3:] for line in lines if line.startswith("0::")), "/").lstrip("/")
    group = ROOT / own
    for folder in (group, *group.parents):
        if folder.is_relative_to(ROOT) and (folder / name).is_file():
            yield (folder / name).read_text().strip()
