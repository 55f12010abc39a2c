"""Whether who started this rank is still there: no rank trains on without its launcher.

A launcher that is killed outright passes nothing on, and neither does the ``deepspeed`` command,
whatever ends it: its ranks would go on, hold the run directory, and be known to nobody.
"""

import threading
from collections.abc import Callable
from pathlib import Path

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
            if any(_born(process) != born for process, born in self._launchers.items()):
                self._gone()
                return


def _launchers() -> dict[Path, str]:
    """The parent and those above it, up to the first that is no launcher, and when each began."""
    found: dict[Path, str] = {}
    process = Path("/proc/self")
    while (parent := _status(process)[1]) and _is_launcher(above := Path("/proc") / parent):
        found[above] = _born(above)
        process = above
    return found


def _is_launcher(process: Path) -> bool:
    try:
        words = (process / "cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return False
    return not NAMES.isdisjoint(Path(word).name for word in words[:4])  # python -u -m module


def _born(process: Path) -> str:
    """When it began, by which it is told from a later one of its number; empty once it ended."""
    state, _, born = _status(process)
    return "" if state in ("Z", "X") else born


def _status(process: Path) -> tuple[str, str, str]:
    """State, parent and time of birth; empty where there is no such process."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", "", ""
    return fields[0], fields[1], fields[19]
