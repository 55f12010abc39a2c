"""Start programs quickly, as forks of a warm process that has imported everything already.

Importing torch and DeepSpeed takes seconds of CPU time, which a test would pay for each rank and
each command line that it starts. A fork is a process like any other: it has its own environment,
working directory, output and exit status, and ends as Python does. Tests of the start itself (a
launcher, the first seconds) start their programs by themselves.

``program(argv)`` runs a script as ``python argv[0] argv[1]...`` would.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
SEEDS = 2
"""Warm processes; ranks alternate, so that not all have sets of strings in the same order."""

_LOCK = threading.Lock()


class Program:
    """A program that was started by :func:`program`, running or ended."""

    def __init__(self, folder: Path, warm: subprocess.Popen, *, leads: bool) -> None:
        self._folder, self._warm, self._leads = folder, warm, leads
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit status as subprocess does, or None while it runs."""
        status = self._folder / "status"
        if self.returncode is None and status.exists():
            self.returncode = os.waitstatus_to_exitcode(int(status.read_text()))
        assert self.returncode is not None or self._warm.poll() is None, "the warm process died"
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Wait for its end and return its status; kill it after ``seconds``.

        Raises:
            subprocess.TimeoutExpired: it was killed.
        """
        until = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                raise subprocess.TimeoutExpired(str(self._folder), seconds)
            time.sleep(0.01)
        return status

    @property
    def pid(self) -> int:
        """The program's own process id; waits until it has been forked."""
        while not (note := self._folder / "pid").exists():
            self.poll()
            time.sleep(0.005)
        return int(note.read_text())

    def kill(self) -> None:
        """Send SIGKILL, to its whole process group if it leads one; return once it has ended."""
        while self.poll() is None:
            with suppress(ProcessLookupError):  # it is ending, or leads no group yet
                (os.killpg if self._leads else os.kill)(self.pid, signal.SIGKILL)
            time.sleep(0.005)

    @property
    def out(self) -> str:
        """What it has written to its standard output so far."""
        return (self._folder / "out").read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it has written to its standard error so far."""
        return (self._folder / "err").read_text(errors="replace")


class Done(NamedTuple):
    """A program that has ended."""

    returncode: int
    stdout: str
    stderr: str


def program(
    argv: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    number: int = 0,
    leads: bool = False,
) -> Program:
    """Start a script with its arguments, ``argv``, and return at once.

    Args:
        number: its number among the programs of one job, such as its rank.
        leads: whether it leads a process group of its own, so that what it starts is killed too.
    """
    folder = Path(tempfile.mkdtemp(prefix="program", dir=_folder().name))
    request = {"argv": list(map(str, argv)), "cwd": str(cwd), "folder": str(folder), "leads": leads}
    request["env"] = dict(os.environ if env is None else env)
    warm = _warm(number % SEEDS)
    assert warm.stdin is not None
    with _LOCK:
        warm.stdin.write(json.dumps(request) + "\n")
        warm.stdin.flush()
    return Program(folder, warm, leads=leads)


def run(argv: Sequence[object], *, seconds: float = 300, **options: object) -> Done:
    """Start a program as :func:`program` does and wait for its end."""
    started = program(argv, **options)
    return Done(started.wait(seconds), started.out, started.err)


@cache
def _warm(seed: int) -> subprocess.Popen:
    """Return the process that forks, started at the first call."""
    warm = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATH},
    )
    atexit.register(warm.communicate)  # closes its standard input, which ends it
    return warm


@cache
def _folder() -> tempfile.TemporaryDirectory:
    """Return the folder of all programs' files, removed at the end."""
    return tempfile.TemporaryDirectory(prefix="programs")


def _serve() -> dict:
    """Fork for each request on standard input; return only in a fork, with its request."""
    import deepspeed  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import pytest  # noqa: F401
    import torch._dynamo  # noqa: F401

    import gam_scale.evaluate.report
    import gam_scale.plan.job
    import gam_scale.scaling.outputs
    import gam_scale.train.pretrain  # noqa: F401

    sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # this process ends with the tests
    for line in sys.stdin:
        request = json.loads(line)
        _reap()
        if os.fork() == 0 and _keep(Path(request["folder"])):
            return request
    _reap()  # so that their CPU time counts as this process's
    os._exit(0)


def _keep(folder: Path) -> bool:
    """Fork again and return True in the child; the parent notes its pid and status, and exits."""
    child = os.fork()
    if child == 0:
        return True
    _write(folder / "pid", child)
    _, status = os.waitpid(child, 0)
    _write(folder / "status", status)
    os._exit(0)


def _write(path: Path, number: int) -> None:
    """Write a number atomically: others may read the file at any time."""
    path.with_suffix(".tmp").write_text(str(number))
    path.with_suffix(".tmp").rename(path)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(argv: list[str], cwd: str, folder: str, leads: bool, env: dict[str, str]) -> None:
    """Turn this process into the program, and end as the program ends."""
    import runpy

    import numpy as np

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if leads:
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    np.random.seed()  # a fork reseeds Python's own; torch's seed is the same in any process
    sys.argv[:], sys.path[0] = argv, str(Path(argv[0]).parent)
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    _become(**_serve())
