"""Command lines run for an attack, and what every one of them must end with."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
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
    """Runs tools/*.py, each in a process of its own; see :func:`commands`."""

    def __init__(self, zygotes: Sequence[subprocess.Popen]) -> None:
        self._free: SimpleQueue[subprocess.Popen] = SimpleQueue()
        for zygote in zygotes:
            self._free.put(zygote)

    def run(self, cwd: Path, tool: str, *arguments: str, as_anybody: bool = False) -> Done:
        """One command line, typed in folder ``cwd``; ``as_anybody``: without root's rights."""
        out, err = cwd / ".out", cwd / ".err"
        request = {
            "argv": [str(ROOT / "tools" / f"{tool}.py"), *arguments],
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "seconds": SECONDS,
            "as_anybody": as_anybody,
        }
        zygote = self._free.get()
        try:
            zygote.stdin.write(json.dumps(request) + "\n")
            zygote.stdin.flush()
            status = json.loads(zygote.stdout.readline())
        finally:
            self._free.put(zygote)
        return Done(status, out.read_text(errors="replace"), err.read_text(errors="replace"))


@contextmanager
def commands() -> Iterator[Commands]:
    """A few processes that wait for command lines."""
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "MPLBACKEND": "agg",
        "WANDB_MODE": "offline",
    }
    with ExitStack() as stack:
        started = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=env,
            )
            for _ in range(AT_ONCE)
        ]
        for zygote in started:
            stack.enter_context(zygote)  # closes its standard input, which ends it
        for zygote in started:
            # Before that line stands what packages print when they are imported.
            started_well = "ready\n" in iter(zygote.stdout.readline, "")
            assert started_well, "the process that runs the tools did not start"
        yield Commands(started)


def in_parallel(function: Any, cases: Sequence[Any]) -> list[Any]:
    """``function`` of every case, a few at a time."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, cases))
