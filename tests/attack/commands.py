"""Run command lines for an attack, and judge how each of them ends."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import warm

ROOT = Path(__file__).resolve().parents[2]
LIMITED = Path(__file__).with_name("limited.py")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": warm.PATH,
    "MPLBACKEND": "agg",
    "WANDB_MODE": "offline",
}
SECONDS = 100
"""After this long a command line counts as hanging; each takes one or two seconds."""
AT_ONCE = 2


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    status: int | None
    out: str
    err: str

    @property
    def fault(self) -> str:
        """What is wrong with this end; empty if it did the work, or refused it in one sentence."""
        said = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if self.status is None:
            return f"hangs: not ended after {SECONDS} s"
        if "Traceback (most recent call last)" in self.err + self.out:
            return "a traceback"
        if self.status == 0:
            return "" if not said else "an error and exit 0"
        if self.status != 2:
            return f"exit {self.status}"
        if len(said) != 1 or len(said[0]) > 1300:
            return f"{len(said)} sentences on one mistake"
        return ""


class Commands:
    """Runs tools/*.py, each in a process of its own."""

    def run(self, cwd: Path, tool: str, *arguments: str, as_anybody: bool = False) -> Done:
        """Run a command line in folder ``cwd``, without root's rights if ``as_anybody``."""
        rights = "anybody" if as_anybody else "own"
        argv = [LIMITED, rights, ROOT / "tools" / f"{tool}.py", *arguments]
        started = warm.program(argv, cwd=cwd, env=os.environ | ENVIRONMENT, leads=True)
        status: int | None = None
        with suppress(TimeoutExpired):
            status = started.wait(SECONDS)
        return Done(status, started.out, started.err)


def in_parallel(function: Any, cases: Sequence[Any]) -> list[Any]:
    """Return ``function(case)`` for every case, computed a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, cases))
