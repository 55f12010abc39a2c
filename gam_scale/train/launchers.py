"""Whether who started this rank is still there: no rank trains on without its launcher.

A launcher that is killed outright passes nothing on, and neither does the ``deepspeed`` command,
whatever ends it: its ranks would go on, hold the run directory, and be known to nobody.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from gam_scale.process import stat

NAMES = {
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "submitit.local._local",
}
"""Programs and modules that end when their ranks do, and not before."""
LOOK_S = 1.0


class LauncherWatch:
    """Calls ``gone`` once a launcher above this process has ended; nothing outside Linux.

    Args:
        gone: called in a thread of its own.
    """

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone, self._launchers = gone, _launchers()
        self._over = threading.Event()
        if self._launchers:
            threading.Thread(target=self._look, name="launcher watch", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            if any(_born(pid) != born for pid, born in self._launchers.items()):
                self._gone()
                return


def _launchers() -> dict[int, int]:
    """The parent and those above it, up to the first that is no launcher, and when each began."""
    found: dict[int, int] = {}
    below = stat("self")
    while below and below.parent and _is_launcher(below.parent) and (above := stat(below.parent)):
        found[below.parent] = above.started
        below = above
    return found


def _is_launcher(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    return not NAMES.isdisjoint(Path(word).name for word in words[:4])  # python -u -m module


def _born(pid: int) -> int | None:
    """When it began, by which it is told from a later one of its number; None once it ended."""
    found = stat(pid)
    return found and found.started
