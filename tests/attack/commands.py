"""Command lines run for an attack, and what every one of them must end with."""

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
"""After which a command line hangs: each takes one or two."""
AT_ONCE = 2


@dataclass(frozen=True)
class Done:
    """How a command line ended."""

    status: int | None
    out: str
    err: str

    @property
    def fault(self) -> str:
        """What no input may lead to; empty: it did the work, or refused it in one sentence."""
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
        """One command line, typed in folder ``cwd``; ``as_anybody``: without root's rights."""
        rights = "anybody" if as_anybody else "own"
        argv = [LIMITED, rights, ROOT / "tools" / f"{tool}.py", *arguments]
        started = warm.program(argv, cwd=cwd, env=os.environ | ENVIRONMENT, leads=True)
        status: int | None = None
        with suppress(TimeoutExpired):
            status = started.wait(SECONDS)
        return Done(status, started.out, started.err)


def in_parallel(function: Any, cases: Sequence[Any]) -> list[Any]:
    """``function`` of every case, a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, cases))
