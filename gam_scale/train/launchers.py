"""A watch on the launchers of a rank, so that no rank trains on without its launcher.

A launcher that is killed outright passes no signal on, and the ``deepspeed`` command never does.
Without the watch, the ranks would train on unnoticed and keep the run directory locked.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

NAMES = {
    "deepspeed",
    "deepspeed.launcher.launch",
    "deepspeed.launcher.runner",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
    "submitit.local._local",
}
"""Launchers: programs and modules that end when their ranks do, and not before."""
LOOK_S = 1.0


class LauncherWatch:
    """Calls ``gone`` once a launcher above this process has ended.

    Args:
        gone: called once, in a thread of its own.
    """

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone, self._launchers = gone, _launchers()
        self._over = threading.Event()
        if self._launchers:
            threading.Thread(target=self._look, name="launcher watch", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            if not all(map(_runs, self._launchers)):
                self._gone()
                return


def _launchers() -> list[psutil.Process]:
    """Return the launchers right above this process, up to the first ancestor that is none."""
    launchers: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):  # some systems hide other users' processes
        above = psutil.Process().parent()
        while above is not None and _is_launcher(above):
            launchers.append(above)
            above = above.parent()
    return launchers


def _is_launcher(process: psutil.Process) -> bool:
    words = process.cmdline()[:4]  # python -u -m module
    return not NAMES.isdisjoint(Path(word).name for word in words)


def _runs(process: psutil.Process) -> bool:
    """Whether a process still runs, and is neither a zombie nor one whose id was reused."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
